// The `openai` package for Node against the server at REMUDA_URL.

import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.REMUDA_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hi! How are you today?" }];
const chat = { model: "demo", messages, temperature: 0, max_completion_tokens: 24 };
const completion = { model: "demo", prompt: "Once upon a time", temperature: 0, max_tokens: 24 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", description: "The weather.", parameters } }];

test("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes("demo"));
  assert.equal((await client.models.retrieve("demo")).object, "model");
  await assert.rejects(client.models.retrieve("nobody"), OpenAI.NotFoundError);
});

test("a chat, with its request id", async () => {
  const answer = await client.chat.completions.create(chat);
  assert.ok(answer._request_id);
  assert.match(answer.system_fingerprint, /^fp_/);
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.equal(answer.choices[0].message.refusal, null);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a chat's stream is the whole", async () => {
  const whole = await client.chat.completions.create(chat);
  const runner = client.chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
  let text = "";
  runner.on("content", (delta) => (text += delta));
  const final = await runner.finalChatCompletion();
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
  assert.deepEqual(final.usage, whole.usage);
});

test("several choices in one stream", async () => {
  const stream = await client.chat.completions.create({ ...chat, n: 3, temperature: 1, seed: 1, stream: true });
  const texts = ["", "", ""];
  const reasons = [];
  for await (const { choices } of stream) {
    for (const choice of choices) {
      texts[choice.index] += choice.delta.content ?? "";
      if (choice.finish_reason) reasons.push(choice.index);
    }
  }
  assert.deepEqual(reasons.sort(), [0, 1, 2]);
  assert.ok(texts.every((text) => text.length > 0));
});

test("log-probabilities with bytes", async () => {
  const answer = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 });
  const { message, logprobs } = answer.choices[0];
  const bytes = Buffer.from(logprobs.content.flatMap((entry) => entry.bytes));
  assert.ok(bytes.toString().startsWith(message.content));
  assert.ok(logprobs.content.every((entry) => entry.top_logprobs.length === 2 && entry.logprob <= 0));
});

test("a completion, and its stream", async () => {
  const whole = await client.completions.create(completion);
  assert.equal(whole.object, "text_completion");
  assert.equal(whole.choices[0].finish_reason, "length");
  let text = "";
  for await (const chunk of await client.completions.create({ ...completion, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, whole.choices[0].text);
});

test("errors are the typed ones", async () => {
  const cases = [
    [{ model: "nobody" }, OpenAI.NotFoundError, "model", "model_not_found"],
    [{ temperature: 9 }, OpenAI.BadRequestError, "temperature", null],
    [{ web_search_options: {} }, OpenAI.BadRequestError, "web_search_options", null],
  ];
  for (const [fields, kind, param, code] of cases) {
    await assert.rejects(client.chat.completions.create({ ...chat, ...fields }), (error) => {
      assert.ok(error instanceof kind);
      assert.deepEqual([error.param, error.code], [param, code]);
      return Boolean(error.requestID);
    });
  }
});

test("an aborted stream ends", async () => {
  const stream = await client.completions.create({ ...completion, max_tokens: 4000, stream: true });
  let count = 0;
  for await (const _ of stream) if (++count === 3) stream.controller.abort();
  assert.ok(count < 1000);
});

// The demo model would not stop at one call, and repeats itself where nothing holds it back.
const calm = { frequency_penalty: 0.5 };
const calling = { ...chat, tools, parallel_tool_calls: false, max_completion_tokens: 64 };

test("json mode", async () => {
  const request = { ...chat, ...calm, response_format: { type: "json_object" }, max_completion_tokens: 400 };
  const answer = await client.chat.completions.create(request);
  assert.equal(typeof JSON.parse(answer.choices[0].message.content), "object");
});

test("a json schema, whole and in a stream", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } };
  const request = { ...chat, response_format, max_completion_tokens: 64 };
  const whole = await client.chat.completions.parse(request);
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();
  for (const answer of [whole, streamed]) assert.match(answer.choices[0].message.parsed.city, /^(Paris|Rome)$/);
});

test("a required tool, whole and in a stream", async () => {
  const request = { ...calling, tool_choice: "required" };
  const whole = await client.chat.completions.create(request);
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();
  for (const answer of [whole, streamed]) {
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert.match(JSON.parse(call.function.arguments).city, /^(Paris|Rome)$/);
  }
});

test("a function is run, and its result sent back", async () => {
  const asked = [];
  const weather = ({ city }) => asked.push(city) && "sunny";
  const runner = client.chat.completions.runTools({
    ...calling,
    tool_choice: { type: "function", function: { name: "weather" } },
    tools: [{ type: "function", function: { ...tools[0].function, function: weather, parse: JSON.parse } }],
  });
  await runner.done();
  assert.equal(asked.length, 1);
  const { role, content } = runner.messages.at(-1);
  assert.deepEqual([role, content], ["tool", "sunny"]);
  const answer = await client.chat.completions.create({ ...calling, messages: runner.messages });
  assert.ok(["stop", "length", "tool_calls"].includes(answer.choices[0].finish_reason));
});

test("a response, whole and in a stream", async () => {
  const request = { model: "demo", input: "Hi! How are you today?", temperature: 0, max_output_tokens: 24 };
  const whole = await client.responses.create(request);
  assert.ok(whole.output_text.length > 0);
  const streamed = await client.responses.stream(request).finalResponse();
  assert.equal(streamed.output_text, whole.output_text);
});

test("a response goes on from another, is listed and deleted", async () => {
  const first = await client.responses.create({ model: "demo", input: "Hi!", max_output_tokens: 8 });
  const fields = { model: "demo", input: "And you?", max_output_tokens: 8 };
  const second = await client.responses.create({ ...fields, previous_response_id: first.id });
  assert.equal(second.previous_response_id, first.id);
  assert.equal((await client.responses.retrieve(first.id)).id, first.id);
  const inputs = [];
  for await (const item of client.responses.inputItems.list(second.id)) inputs.push(item.content[0].text);
  assert.deepEqual(inputs, ["And you?"]);
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
});

test("a response in the background is cancelled", async () => {
  const fields = { model: "demo", input: "Hi!", max_output_tokens: 4000, ignore_eos: true };
  const { id, status } = await client.responses.create({ ...fields, background: true });
  assert.equal(status, "queued");
  assert.equal((await client.responses.cancel(id)).status, "cancelled");
});

test("embeddings, as numbers and in base64", async () => {
  const request = { model: "demo", input: ["Hi", "Bye"] };
  const decoded = await client.embeddings.create(request);
  const { data } = await client.embeddings.create({ ...request, encoding_format: "float" });
  assert.equal(data.length, 2);
  assert.deepEqual(decoded.data.map(({ embedding }) => embedding.length), data.map(({ embedding }) => embedding.length));
  assert.ok(data[0].embedding.every((value, i) => Math.abs(value - decoded.data[0].embedding[i]) < 1e-6));
});

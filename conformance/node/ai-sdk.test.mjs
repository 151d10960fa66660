// Vercel's AI SDK against the server at REMUDA_URL, by its provider for compatible servers and, for responses, OpenAI's.

import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const remuda = createOpenAICompatible({
  name: "remuda",
  baseURL: process.env.REMUDA_URL,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const chat = { model: remuda("demo"), temperature: 0, maxRetries: 0, prompt: "Hi! How are you today?" };
const completion = { ...chat, model: remuda.completionModel("demo") };
const responses = createOpenAI({ baseURL: process.env.REMUDA_URL, apiKey: "none" }).responses("demo");
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(["Paris", "Rome"]) }),
});
// The demo model would go on calling for ever.
const calling = {
  ...chat,
  maxOutputTokens: 64,
  tools: { weather },
  toolChoice: "required",
  providerOptions: { remuda: { parallel_tool_calls: false } },
};

for (const [kind, options] of Object.entries({ chat, completion })) {
  test(`${kind}: text, finish reason and usage`, async () => {
    const answer = await generateText({ ...options, maxOutputTokens: 8 });
    assert.ok(answer.text.length > 0);
    assert.equal(answer.finishReason, "length");
    assert.equal(answer.usage.outputTokens, 8);
    assert.ok(answer.usage.inputTokens > 0);
  });

  test(`${kind}: a stream is the whole`, async () => {
    const whole = await generateText({ ...options, maxOutputTokens: 24 });
    const stream = streamText({ ...options, maxOutputTokens: 24, onError: ({ error }) => assert.fail(error) });
    let text = "";
    for await (const part of stream.textStream) text += part;
    assert.equal(text, whole.text);
    assert.equal(await stream.finishReason, whole.finishReason);
    assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${kind}: stop sequences`, async () => {
    const whole = await generateText({ ...options, maxOutputTokens: 24 });
    const stop = whole.text.slice(5, 9);
    const cut = await generateText({ ...options, maxOutputTokens: 24, stopSequences: [stop] });
    assert.equal(cut.text, whole.text.slice(0, whole.text.indexOf(stop)));
    assert.equal(cut.finishReason, "stop");
  });

  test(`${kind}: the same seed gives the same text`, async () => {
    const drawn = { ...options, temperature: 1, seed: 7, maxOutputTokens: 8 };
    assert.equal((await generateText(drawn)).text, (await generateText(drawn)).text);
  });
}

test("a conversation with a system message", async () => {
  const answer = await generateText({
    ...chat,
    prompt: undefined,
    maxOutputTokens: 8,
    messages: [
      { role: "system", content: "Be kind." },
      { role: "user", content: [{ type: "text", text: "Hi!" }] },
      { role: "assistant", content: "Hello!" },
      { role: "user", content: "How are you?" },
    ],
  });
  assert.ok(answer.text.length > 0);
});

test("an error has the server's message and status", async () => {
  const wrong = generateText({ ...chat, model: remuda("no-such-model") });
  await assert.rejects(wrong, (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 404);
    assert.equal(error.isRetryable, false);
    return /no-such-model/.test(error.message);
  });
});

test("an aborted stream ends", async () => {
  const controller = new AbortController();
  const stream = streamText({ ...completion, maxOutputTokens: 4000, abortSignal: controller.signal, onError() {} });
  let count = 0;
  for await (const _ of stream.textStream) if (++count === 3) controller.abort();
  assert.ok(count < 1000);
});

test("structured output", async () => {
  const schema = z.object({ mood: z.enum(["good", "bad"]) });
  const answer = await generateText({ ...chat, maxOutputTokens: 64, output: Output.object({ schema }) });
  schema.parse(answer.output);
});

test("structured output in a stream", async () => {
  const schema = z.object({ mood: z.enum(["good", "bad"]) });
  const stream = streamText({ ...chat, maxOutputTokens: 64, output: Output.object({ schema }), onError() {} });
  schema.parse(await stream.output);
});

test("a required tool is called", async () => {
  const answer = await generateText(calling);
  assert.equal(answer.finishReason, "tool-calls");
  assert.equal(answer.toolCalls.length, 1);
  assert.equal(answer.toolCalls[0].toolName, "weather");
  assert.match(answer.toolCalls[0].input.city, /^(Paris|Rome)$/);
});

test("a required tool is called in a stream", async () => {
  const stream = streamText({ ...calling, onError: ({ error }) => assert.fail(error) });
  const [call] = await stream.toolCalls;
  assert.equal(call.toolName, "weather");
  assert.match(call.input.city, /^(Paris|Rome)$/);
  assert.equal(await stream.finishReason, "tool-calls");
});

test("a tool by name is called, run, and its result sent back", async () => {
  const asked = [];
  const run = { ...weather, execute: async ({ city }) => asked.push(city) && { degrees: 20 } };
  const answer = await generateText({
    ...calling,
    tools: { weather: run },
    toolChoice: { type: "tool", toolName: "weather" },
    stopWhen: stepCountIs(2),
  });
  assert.equal(answer.steps.length, 2);
  assert.ok(asked.length >= 1);
  assert.deepEqual(answer.steps[0].toolResults[0].output, { degrees: 20 });
  assert.ok(answer.steps[1].usage.inputTokens > answer.steps[0].usage.inputTokens);
});

test("embeddings", async () => {
  const model = remuda.textEmbeddingModel("demo");
  const { embedding, usage } = await embed({ model, value: "Hi", maxRetries: 0 });
  const many = await embedMany({ model, values: ["Hi", "Bye"], maxRetries: 0 });
  assert.ok(usage.tokens > 0);
  assert.equal(many.embeddings.length, 2);
  assert.equal(many.embeddings[1].length, embedding.length);
  assert.notDeepEqual(many.embeddings[1], embedding);
});

test("responses: text, usage, and a stream that is the whole", async () => {
  const options = { ...chat, model: responses, maxOutputTokens: 24 };
  const whole = await generateText(options);
  assert.ok(whole.text.length > 0);
  assert.match(whole.providerMetadata.openai.responseId, /^resp_/);
  const stream = streamText({ ...options, onError: ({ error }) => assert.fail(error) });
  assert.equal(await stream.text, whole.text);
  assert.equal(await stream.finishReason, whole.finishReason);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
});

test("responses: one goes on from another", async () => {
  const options = { ...chat, model: responses, maxOutputTokens: 8 };
  const first = await generateText(options);
  const previousResponseId = first.providerMetadata.openai.responseId;
  const second = await generateText({ ...options, providerOptions: { openai: { previousResponseId } } });
  assert.ok(second.usage.inputTokens > first.usage.inputTokens);
});

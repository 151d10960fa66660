"use strict";
// One request for an answer: its stream, its measures, its end. Shows nothing.

class Turn {
  #api;
  #hasTemplate;
  #estimate;
  #controller = new AbortController();
  #startedAt = performance.now();
  #firstAt = null;
  #lastAt = null;
  #numChunks = 0;
  #usage = null;

  /** estimate: about how many tokens the prompt has, until the server says it. */
  constructor(api, hasTemplate, estimate) {
    this.#api = api;
    this.#hasTemplate = hasTemplate;
    this.#estimate = estimate;
  }

  /** End it; the server frees what it took as soon as the connection closes. */
  stop() {
    this.#controller.abort();
  }

  get isStopped() {
    return this.#controller.signal.aborted;
  }

  /** Stream the answer into `onText`; returns the finish reason. Throws ApiFailure, or AbortError after `stop`. */
  async run(body, onText) {
    const path = this.#hasTemplate ? "v1/chat/completions" : "v1/completions";
    const options = { stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    let ending = "stop";
    for await (const chunk of this.#api.stream(path, { ...body, ...options }, this.#controller.signal)) {
      if (chunk.usage) this.#usage = chunk.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      // Also that of the token which ended the text and has none.
      this.#lastAt = performance.now();
      const text = this.#hasTemplate ? choice.delta.content : choice.text;
      if (text) {
        this.#firstAt = this.#firstAt ?? this.#lastAt;
        this.#numChunks += 1;
        onText(text);
      }
      ending = choice.finish_reason || ending;
    }
    return ending;
  }

  /** What has been measured so far: the figures of a message. */
  get figures() {
    const answerTokens = this.#usage ? this.#usage.completion_tokens : null;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    const counted = answerTokens ?? this.#numChunks;
    return {
      firstMs: this.#firstAt === null ? null : this.#firstAt - this.#startedAt,
      // The first token's time is in firstMs.
      rate: counted > 1 && seconds > 0 ? (counted - 1) / seconds : null,
      promptTokens: this.#usage ? this.#usage.prompt_tokens : null,
      answerTokens,
    };
  }

  /** The same for the panel of live figures. */
  get live() {
    const { firstMs, rate, promptTokens, answerTokens } = this.figures;
    const isEstimate = promptTokens === null;
    return { firstMs, rate, isEstimate, numTokens: isEstimate ? this.#estimate + this.#numChunks : promptTokens + answerTokens };
  }
}

"use strict";
// The server's HTTP API, as far as this page uses it, and what can go wrong with it in words for a person.

/** kind: key, busy, loading, refused, network, broken or server. retryAfter: seconds, where the server says so. */
class ApiFailure extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

class Api {
  static #KEY = "remuda-chat-key";

  // Where the browser keeps nothing: until the page is left.
  #unkept = "";

  /** The API key of this tab, or "". */
  get key() {
    return this.#unkept || readStored(sessionStorage, Api.#KEY) || "";
  }

  set key(key) {
    this.#unkept = writeStored(sessionStorage, Api.#KEY, key || null) ? "" : key;
  }

  /** The JSON at `path`. Throws ApiFailure. */
  async read(path) {
    const answer = await this.#fetch(path, {});
    try {
      return await answer.json();
    } catch {
      throw new ApiFailure("server", "The server’s answer is not what this page expects.");
    }
  }

  /** Each chunk of a streamed answer. Throws ApiFailure, also where the stream ends before its end. */
  async *stream(path, body, signal) {
    const headers = { "content-type": "application/json" };
    const answer = await this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    try {
      for await (const data of readEvents(answer.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiFailure("server", `The server ended the answer: ${chunk.error.message}`);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ApiFailure || signal.aborted) throw error;
    }
    throw new ApiFailure("broken", "The connection broke off before the answer was complete.");
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...(this.key ? { authorization: `Bearer ${this.key}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (options.signal && options.signal.aborted) throw error;
      throw new ApiFailure("network", "The server cannot be reached. Is it running, and is the network up?");
    }
    if (!answer.ok) throw await Api.#failure(answer);
    return answer;
  }

  static async #failure(answer) {
    const body = await answer.json().catch(() => null);
    const said = (body && body.error && body.error.message) || `status ${answer.status}`;
    const seconds = Number.parseInt(answer.headers.get("retry-after"), 10);
    const retryAfter = Number.isNaN(seconds) ? null : seconds;
    if (answer.status === 401) return new ApiFailure("key", "The server wants an API key that it knows.");
    if (answer.status === 429) return new ApiFailure("busy", `The server is busy: ${said}.`, retryAfter);
    if (answer.status === 503) return new ApiFailure("loading", `The server is not ready: ${said}.`, retryAfter);
    if (answer.status < 500) return new ApiFailure("refused", `The server refused the request: ${said}.`);
    return new ApiFailure("server", `The server failed: ${said}.`);
  }
}

"use strict";
// Server-sent events out of the body of a fetch. Knows nothing of chats.

class SseParser {
  #rest = "";
  #data = [];

  /** The data of each event that `text` completes; events and lines may be cut anywhere. */
  push(text) {
    // A \r at the end may be half of a \r\n.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

/** The data of each event of a stream of bytes. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    // After an error there is nothing left to cancel, and it says so.
    reader.cancel().catch(() => {});
  }
}

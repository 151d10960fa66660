"use strict";
// The messages: kept over a reload, written to a file and read from one, and made into a request.

const FILE_FORMAT = "remuda-chat";
const FILE_VERSION = 1;
const MAX_FILE_BYTES = 50_000_000;

/** What is wrong with a file, in words for a person. */
class FileProblem extends Error {}

/**
 * messages: {role: "user" | "assistant", content}, and of an answer also how it ended (ending: stop, length,
 * stopped or failed), failure (in words) and figures: {firstMs, rate, promptTokens, answerTokens}.
 */
class Conversation {
  static #NAME = "remuda-chat-conversation";

  messages = [];

  /** That of this tab; an empty one where there is none. */
  static load() {
    const conversation = new Conversation();
    const kept = readStored(sessionStorage, Conversation.#NAME);
    if (kept) {
      try {
        conversation.messages = messagesOf(JSON.parse(kept));
      } catch {
        writeStored(sessionStorage, Conversation.#NAME, null);
      }
    }
    return conversation;
  }

  /** Whether it could be kept; a very long one cannot. */
  save() {
    return writeStored(sessionStorage, Conversation.#NAME, JSON.stringify({ messages: this.messages }));
  }

  /** The text of a file. */
  toFile(model, system) {
    const head = { format: FILE_FORMAT, version: FILE_VERSION, exported: new Date().toISOString(), model, system };
    return JSON.stringify({ ...head, messages: this.messages }, null, 2);
  }

  /** The conversation and the system prompt of a file. Throws FileProblem. */
  static fromFile(text) {
    let file;
    try {
      file = JSON.parse(text);
    } catch {
      throw new FileProblem("The file is not JSON.");
    }
    if (file === null || file.format !== FILE_FORMAT) throw new FileProblem("The file is not a conversation that this page exported.");
    if (file.version !== FILE_VERSION) throw new FileProblem(`The file has version ${file.version}, this page reads version ${FILE_VERSION}.`);
    const conversation = new Conversation();
    conversation.messages = messagesOf(file);
    return { conversation, system: typeof file.system === "string" ? file.system : "" };
  }

  /** Tokens of context after the last answer that was counted; null where none was. */
  get numTokens() {
    const last = this.messages.findLast((message) => message.figures && message.figures.promptTokens);
    return last ? last.figures.promptTokens + last.figures.answerTokens : null;
  }

  /** The messages and the prompt before the answer at `index`. */
  request(index, hasTemplate, system) {
    const before = this.messages.slice(0, index).filter((message) => message.content !== "");
    // A base model goes on with the text so far, to which nothing is added.
    if (!hasTemplate) return { prompt: before.map((message) => message.content).join("") };
    const messages = before.map(({ role, content }) => ({ role, content }));
    return { messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  }
}

function messagesOf(file) {
  if (!Array.isArray(file.messages)) throw new FileProblem("The file has no list of messages.");
  return file.messages.map((message, i) => {
    const isKnown = message && (message.role === "user" || message.role === "assistant");
    if (!isKnown || typeof message.content !== "string") {
      throw new FileProblem(`Message ${i + 1} of the file has no role user or assistant, or no text.`);
    }
    return cleanMessage(message);
  });
}

/** What this page knows of a message, and nothing else of a file. */
function cleanMessage({ role, content, ending, failure, figures }) {
  if (role === "user") return { role, content };
  const clean = { role, content, ending: ["stop", "length", "stopped", "failed"].includes(ending) ? ending : "stop" };
  if (clean.ending === "failed") clean.failure = typeof failure === "string" ? failure : "The answer failed.";
  if (figures && typeof figures === "object") {
    const names = ["firstMs", "rate", "promptTokens", "answerTokens"];
    const isNumber = (name) => Number.isFinite(figures[name]) && figures[name] >= 0;
    clean.figures = Object.fromEntries(names.map((name) => [name, isNumber(name) ? figures[name] : null]));
  }
  return clean;
}

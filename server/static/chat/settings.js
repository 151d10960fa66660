"use strict";
// What to ask of the sampler: the fields, what is allowed in them, and the request that they make.

const SETTINGS_FIELDS = [
  { name: "system", label: "System prompt", kind: "text", hint: "Goes before the conversation, where the model has a chat template." },
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, hint: "0 always takes the likeliest token." },
  { name: "top_p", label: "Top p", kind: "number", above: 0, max: 1, hint: "Keep the likeliest tokens of this mass." },
  { name: "top_k", label: "Top k", kind: "integer", min: -1, max: 1e9, hint: "Keep so many tokens; 0 keeps all." },
  { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, hint: "Leave out tokens below this share of the likeliest." },
  { name: "repetition_penalty", label: "Repetition penalty", kind: "number", min: 0.01, max: 100, hint: "Above 1 discourages tokens seen so far." },
  { name: "max_tokens", label: "Most new tokens", kind: "integer", min: 1, max: 2147483647, initial: "512", hint: "Of one answer." },
  { name: "seed", label: "Seed", kind: "integer", min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, hint: "The same seed draws the same answer." },
  { name: "stop", label: "Stop texts", kind: "lines", hint: "One a line; \\n stands for a line break. Up to 16 of 256 characters." },
];
const MAX_STOPS = 16;
const MAX_STOP_CHARS = 256;

class Settings {
  static #NAME = "remuda-chat-settings";

  // What has been typed, by the name of the field.
  typed = Settings.defaults();

  static defaults() {
    return Object.fromEntries(SETTINGS_FIELDS.map((field) => [field.name, field.initial || ""]));
  }

  /** What was kept, as far as it is still allowed. */
  static load() {
    const settings = new Settings();
    let kept = null;
    try {
      kept = JSON.parse(readStored(localStorage, Settings.#NAME));
    } catch {
      return settings;
    }
    for (const field of SETTINGS_FIELDS) {
      const typed = kept && kept[field.name];
      if (typeof typed === "string" && !complaint(field, typed)) settings.typed[field.name] = typed;
    }
    return settings;
  }

  save() {
    return writeStored(localStorage, Settings.#NAME, JSON.stringify(this.typed));
  }

  get system() {
    return this.typed.system.trim();
  }

  /** The fields of a request; what is empty is left to the server. */
  request() {
    const fields = {};
    for (const { name, kind } of SETTINGS_FIELDS) {
      const typed = this.typed[name];
      if (name === "system" || typed.trim() === "") continue;
      fields[name] = kind === "lines" ? stopTexts(typed) : Number(typed);
    }
    return fields;
  }
}

/** What is wrong with `typed` in a field, or "". */
function complaint(field, typed) {
  if (field.kind === "text" || typed.trim() === "") return "";
  if (field.kind === "lines") return stopComplaint(stopTexts(typed));
  const value = Number(typed);
  if (!Number.isFinite(value)) return `${field.label} must be a number.`;
  if (field.kind === "integer" && !Number.isSafeInteger(value)) return `${field.label} must be a whole number.`;
  if (field.above !== undefined && !(value > field.above && value <= field.max)) {
    return `${field.label} must be above ${field.above} and at most ${field.max}.`;
  }
  if (value < field.min || value > field.max) return `${field.label} must be from ${field.min} to ${field.max}.`;
  return "";
}

function stopTexts(typed) {
  return typed.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
}

function stopComplaint(texts) {
  if (texts.length > MAX_STOPS) return `There may be ${MAX_STOPS} stop texts at most, not ${texts.length}.`;
  const long = texts.find((text) => text.length > MAX_STOP_CHARS);
  return long ? `A stop text may have ${MAX_STOP_CHARS} characters at most, not ${long.length}.` : "";
}

/** The form over the settings: shows them, and complains in place. */
class SettingsForm {
  #rows = new Map();

  constructor(root) {
    for (const field of SETTINGS_FIELDS) {
      const isLong = field.kind === "text" || field.kind === "lines";
      const input = element(isLong ? "textarea" : "input");
      input.id = `setting-${field.name}`;
      input.autocomplete = "off";
      if (isLong) input.rows = field.kind === "text" ? 3 : 2;
      else input.inputMode = field.kind === "integer" ? "numeric" : "decimal";
      if (!isLong) input.placeholder = field.name === "seed" ? "random" : "default";
      const label = element("label", "", field.label);
      label.htmlFor = input.id;
      const hint = element("p", "hint", field.hint);
      hint.id = `${input.id}-hint`;
      const wrong = element("p", "wrong");
      wrong.id = `${input.id}-wrong`;
      input.setAttribute("aria-describedby", `${hint.id} ${wrong.id}`);
      input.addEventListener("input", () => this.#check(field));
      root.append(element("div", field.kind === "text" ? "field wide" : "field", label, input, hint, wrong));
      this.#rows.set(field.name, { field, input, wrong });
    }
  }

  show(typed) {
    for (const { field, input } of this.#rows.values()) {
      input.value = typed[field.name];
      this.#check(field);
    }
  }

  /** What is typed; null, with the focus on the first field that is wrong, if any is. */
  read() {
    const wrong = [...this.#rows.values()].filter(({ field }) => !this.#check(field));
    if (wrong.length) {
      wrong[0].input.focus();
      return null;
    }
    return Object.fromEntries([...this.#rows].map(([name, { input }]) => [name, input.value]));
  }

  #check(field) {
    const { input, wrong } = this.#rows.get(field.name);
    wrong.textContent = complaint(field, input.value);
    input.setAttribute("aria-invalid", wrong.textContent ? "true" : "false");
    return !wrong.textContent;
  }
}

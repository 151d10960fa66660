"use strict";
// Light or dark: as the system has it until somebody chooses, and then as chosen. Runs before the first paint.

class Theme {
  static #NAME = "remuda-chat-theme";

  /** "system", "light" or "dark". */
  static get choice() {
    const kept = readStored(localStorage, Theme.#NAME);
    return kept === "light" || kept === "dark" ? kept : "system";
  }

  static set choice(choice) {
    writeStored(localStorage, Theme.#NAME, choice === "system" ? null : choice);
    Theme.apply();
  }

  /** What is shown now. */
  static get isDark() {
    const choice = Theme.choice;
    return choice === "system" ? matchMedia("(prefers-color-scheme: dark)").matches : choice === "dark";
  }

  static apply() {
    const choice = Theme.choice;
    if (choice === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = choice;
  }
}

/** What a storage has under `name`; null too where the browser allows none. */
function readStored(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null;
  }
}

/** Keep `text` under `name`, or nothing for null. Whether it was kept: a storage can be full or forbidden. */
function writeStored(storage, name, text) {
  try {
    if (text === null) storage.removeItem(name);
    else storage.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}

Theme.apply();

"use strict";
// The dialogs (settings, API key, help), the short notes at the foot, and files in and out.

class SettingsDialog {
  #dialog = document.getElementById("settings");
  #form = new SettingsForm(document.getElementById("fields"));
  #appearance = document.getElementById("appearance");

  constructor(settings) {
    document.getElementById("reset-settings").addEventListener("click", () => this.#form.show(Settings.defaults()));
    document.getElementById("cancel-settings").addEventListener("click", () => this.#dialog.close());
    this.#dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const typed = this.#form.read();
      if (!typed) return;
      settings.typed = typed;
      Theme.choice = this.#appearance.value;
      this.#dialog.close();
      if (!settings.save()) showToast("This browser does not let the page keep its settings.");
    });
    this.open = () => {
      this.#form.show(settings.typed);
      this.#appearance.value = Theme.choice;
      this.#dialog.showModal();
    };
  }
}

class KeyDialog {
  #dialog = document.getElementById("key");
  #field = document.getElementById("key-value");
  #wrong = document.getElementById("key-error");

  /** onKey: called when the key has changed. */
  constructor(api, onKey) {
    document.getElementById("cancel-key").addEventListener("click", () => this.#dialog.close());
    document.getElementById("forget-key").addEventListener("click", () => this.#leave(api, "", onKey));
    this.#dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const key = this.#field.value.trim();
      this.#complain(/^[!-~]{1,512}$/.test(key) ? "" : "A key has 1 to 512 ASCII characters and no spaces.");
      if (!this.#wrong.textContent) this.#leave(api, key, onKey);
    });
    // It must not stay in the page when it has been given.
    this.#dialog.addEventListener("close", () => { this.#field.value = ""; });
  }

  open(reason) {
    document.getElementById("key-reason").textContent = reason;
    this.#complain("");
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#field.focus();
  }

  #leave(api, key, onKey) {
    api.key = key;
    this.#dialog.close();
    onKey();
  }

  #complain(text) {
    this.#wrong.textContent = text;
    this.#field.setAttribute("aria-invalid", text ? "true" : "false");
  }
}

function setUpHelp() {
  const dialog = document.getElementById("help");
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
  });
  return dialog;
}

let toastTimer = 0;

/** A short note; with `undo`, a button for some seconds. */
function showToast(text, undo = null) {
  const toast = document.getElementById("toast");
  const button = toast.querySelector("button");
  toast.querySelector("p").textContent = text;
  button.hidden = !undo;
  button.onclick = () => {
    toast.classList.remove("shown");
    button.hidden = true;
    undo();
  };
  toast.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    toast.classList.remove("shown");
    button.hidden = true;
  }, undo ? 10_000 : 4000);
}

/** Copy `text`, and say so. Pages without a secure context have no clipboard API. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    showToast("Copied.");
  } catch {
    showToast(copyBySelection(text) ? "Copied." : "The browser does not let this page copy; select the text instead.");
  }
}

function copyBySelection(text) {
  const field = element("textarea", "unseen");
  field.value = text;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  return isCopied;
}

/** Offer `text` as a download. */
function download(name, text) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The conversation of the file that the user picked. Throws FileProblem. */
async function readConversation(file) {
  if (file.size > MAX_FILE_BYTES) throw new FileProblem(`The file has ${shownBytes(file.size)}, ${shownBytes(MAX_FILE_BYTES)} are the most.`);
  return Conversation.fromFile(await file.text());
}

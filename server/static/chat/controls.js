"use strict";
// Keys and buttons: which of them asks the page for what.

class Controls {
  #app;
  #prompt = document.getElementById("prompt");
  #log = document.getElementById("log");

  constructor(app) {
    this.#app = app;
    this.#listenToComposer();
    this.#listenToHeader();
    this.#listenToLog();
    document.addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("pagehide", () => app.leave());
  }

  static #on(id, type, handler) {
    document.getElementById(id).addEventListener(type, handler);
  }

  #listenToComposer() {
    Controls.#on("composer", "submit", (event) => {
      event.preventDefault();
      this.#app.send(this.#prompt.value);
    });
    Controls.#on("prompt", "input", () => {
      fitHeight(this.#prompt);
      this.#app.showState();
    });
    Controls.#on("prompt", "keydown", (event) => this.#onPromptKey(event));
    Controls.#on("stop", "click", () => this.#app.stop());
    document.querySelector("#notice button").addEventListener("click", () => this.#app.connect());
  }

  #listenToHeader() {
    const app = this.#app;
    Controls.#on("new", "click", () => app.startAnew());
    Controls.#on("open-settings", "click", () => app.settingsDialog.open());
    Controls.#on("settings", "close", () => app.showTheme());
    Controls.#on("theme", "click", () => {
      Theme.choice = Theme.isDark ? "light" : "dark";
      app.showTheme();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.showTheme());
    Controls.#on("menu", "click", () => document.getElementById("menu").hidePopover());
    Controls.#on("export", "click", () => app.exportFile());
    Controls.#on("import", "click", () => document.getElementById("file").click());
    Controls.#on("file", "change", (event) => {
      if (event.target.files.length) app.importFile(event.target.files[0]);
      event.target.value = "";
    });
    Controls.#on("open-key", "click", () => app.keyDialog.open("Servers that were started with keys ask for one."));
    Controls.#on("open-help", "click", () => app.help.showModal());
    Controls.#on("show-chart", "click", (event) => {
      const isShown = document.getElementById("figures").classList.toggle("open");
      event.target.setAttribute("aria-expanded", String(isShown));
    });
  }

  #listenToLog() {
    Controls.#on("jump", "click", () => this.#app.toEnd());
    this.#log.addEventListener("scroll", () => this.#app.showJump(), { passive: true });
    this.#log.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.classList.contains("copy-code")) copyText(button.closest(".code").querySelector("code").textContent);
      const index = this.#app.indexOf(button);
      if (button.dataset.action === "copy") this.#app.copy(index);
      if (button.dataset.action === "retry") this.#app.retry(index);
      if (button.dataset.action === "edit") this.#app.edit(index);
    });
  }

  #onPromptKey(event) {
    // Enter ends the composition of a character first.
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.#app.send(this.#prompt.value);
    } else if (event.key === "ArrowUp" && this.#prompt.value === "") {
      event.preventDefault();
      this.#app.editLast();
    }
  }

  /** The keys that work wherever the focus is, but behind no dialog. */
  #onKey(event) {
    if (event.isComposing || document.querySelector("dialog[open], :popover-open")) return;
    const act = this.#command(event);
    if (!act) return;
    event.preventDefault();
    act();
  }

  #command(event) {
    const app = this.#app;
    const key = event.key.toLowerCase();
    if (key === "escape" && app.isAnswering) return () => app.stop();
    if (event.ctrlKey || event.metaKey) {
      const commands = event.shiftKey
        ? { enter: () => app.retry(), l: () => app.copyLast(), o: () => app.startAnew() }
        : { ".": () => app.settingsDialog.open() };
      // On some keyboards the slash has Shift.
      return key === "/" ? () => app.help.showModal() : commands[key];
    }
    const isTyping = event.target.matches("input, textarea, select");
    return key === "/" && !isTyping ? () => this.#prompt.focus() : null;
  }
}

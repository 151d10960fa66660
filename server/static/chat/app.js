"use strict";
// The page: a conversation, the server's answers to it, and what can be done with both. Who asks for it is Controls.

const TICK_MS = 100;
const NEAR_END_PX = 80;
const MAX_ANNOUNCED_CHARS = 2000;
const CHARS_A_TOKEN = 4;
const LOADING_RETRY_MS = 2000;
const SUGGESTIONS = {
  chat: ["Tell me a story about a little dog.", "Hello! How are you today?", "What do you like to eat?"],
  text: ["Once upon a time", "The little dog", "In the morning,"],
};

class App {
  #api = new Api();
  #settings = Settings.load();
  #conversation = new Conversation();
  #figures = new Figures();
  #views = [];
  #info = null;
  #turn = null;
  #connecting = 0;
  #log = document.getElementById("log");
  #prompt = document.getElementById("prompt");
  #model = document.getElementById("model");
  settingsDialog = new SettingsDialog(this.#settings);
  keyDialog = new KeyDialog(this.#api, () => this.connect());
  help = setUpHelp();

  start() {
    this.#replace(Conversation.load());
    new Controls(this);
    this.showTheme();
    this.#prompt.focus();
    this.connect();
  }

  /** Ask the server what it serves; until it says so, nothing can be sent. */
  async connect() {
    clearTimeout(this.#connecting);
    try {
      const [info, models] = await Promise.all([this.#api.read("info"), this.#api.read("v1/models")]);
      this.#show(info, models.data.map((model) => model.id));
    } catch (failure) {
      if (!(failure instanceof ApiFailure)) throw failure;
      this.#info = null;
      this.#notice(failure.message);
      if (failure.kind === "key") this.#askForKey();
      if (failure.kind === "loading") this.#connecting = setTimeout(() => this.connect(), LOADING_RETRY_MS);
    }
    this.showState();
  }

  #show(info, names) {
    const kept = this.#model.value;
    this.#model.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(kept)) this.#model.value = kept;
    this.#model.disabled = false;
    const isNew = this.#info === null || this.#info.has_chat_template !== info.has_chat_template;
    this.#info = info;
    this.#figures.info = info;
    this.#notice("");
    if (isNew) this.#replace(this.#conversation);
    this.#showWelcome();
  }

  #showWelcome() {
    const { has_chat_template: hasTemplate, num_parameters: size, slot_bytes: state } = this.#info;
    document.getElementById("welcome-title").textContent = hasTemplate ? "Start a conversation" : "Begin a text";
    document.getElementById("welcome-text").textContent =
      `${this.#info.model} has ${shownCount(size)} parameters and remembers any length of context in ${shownBytes(state)}. ` +
      (hasTemplate ? "" : "It has no chat template: it goes on with your text, and adds nothing to it.");
    this.#prompt.placeholder = hasTemplate ? "Write a message" : "Write the beginning of a text";
    const texts = SUGGESTIONS[hasTemplate ? "chat" : "text"];
    document.getElementById("suggestions").replaceChildren(...texts.map((text) => {
      const chip = element("button", "chip", text);
      chip.type = "button";
      chip.addEventListener("click", () => this.send(text));
      return chip;
    }));
  }

  get #isPlain() {
    return this.#info !== null && !this.#info.has_chat_template;
  }

  /** Show another conversation, from its beginning. */
  #replace(conversation) {
    this.#conversation = conversation;
    this.#views = conversation.messages.map((message) => new MessageView(message, this.#isPlain));
    document.getElementById("messages").replaceChildren(...this.#views.map((view) => view.node));
    const last = conversation.messages.findLast((message) => message.figures);
    const { firstMs = null, rate = null } = last ? last.figures : {};
    this.#figures.show({ firstMs, rate, numTokens: conversation.numTokens, isEstimate: false });
    this.showState();
    this.toEnd();
  }

  #add(message) {
    const view = new MessageView(message, this.#isPlain);
    this.#conversation.messages.push(message);
    this.#views.push(view);
    document.getElementById("messages").append(view.node);
    return view;
  }

  /** Drop all messages from `index` on. */
  #cut(index) {
    this.#conversation.messages.splice(index);
    for (const view of this.#views.splice(index)) view.node.remove();
  }

  send(text) {
    if (this.#turn || !this.#info || text.trim() === "") return;
    this.#add({ role: "user", content: this.#isPlain ? text : text.trim() });
    this.#prompt.value = "";
    fitHeight(this.#prompt);
    this.#answer();
  }

  /** Ask for the answer to the last message. */
  async #answer() {
    const { messages } = this.#conversation;
    const body = this.#conversation.request(messages.length, !this.#isPlain, this.#settings.system);
    const added = messages.at(-1).content.length / CHARS_A_TOKEN;
    const turn = new Turn(this.#api, !this.#isPlain, (this.#conversation.numTokens || 0) + Math.ceil(added));
    const message = { role: "assistant", content: "" };
    const view = this.#add(message);
    this.#turn = turn;
    view.begin();
    this.showState();
    this.toEnd();
    const tick = setInterval(() => this.#tick(view), TICK_MS);
    try {
      const fields = { model: this.#model.value, ...body, ...this.#settings.request() };
      message.ending = await turn.run(fields, (text) => {
        message.content += text;
        view.append(text);
      });
    } catch (failure) {
      this.#fail(message, turn, failure);
    } finally {
      clearInterval(tick);
      this.#finish(view, turn);
    }
  }

  #fail(message, turn, failure) {
    if (turn.isStopped) {
      message.ending = "stopped";
      return;
    }
    message.ending = "failed";
    const known = failure instanceof ApiFailure;
    message.failure = known ? failure.message : "This page made a mistake; its console says more.";
    if (known && failure.retryAfter) message.failure += ` Try again in ${failure.retryAfter} s.`;
    if (known && failure.kind === "key") this.#askForKey();
    if (!known) console.error(failure);
  }

  #tick(view) {
    const isAtEnd = this.#isAtEnd;
    view.flush();
    this.#figures.show(this.#turn.live);
    if (isAtEnd) this.toEnd();
    this.showJump();
  }

  #finish(view, turn) {
    const { message } = view;
    const isAtEnd = this.#isAtEnd;
    message.figures = turn.figures;
    view.flush();
    view.end();
    this.#turn = null;
    this.showState();
    // The user may have begun another conversation.
    if (!this.#views.includes(view)) return;
    this.#figures.show(turn.live);
    if (isAtEnd) this.toEnd();
    this.#save();
    const said = message.content.slice(0, MAX_ANNOUNCED_CHARS);
    const how = { failed: `${message.failure} `, stopped: "Stopped. " }[message.ending] || "";
    document.getElementById("announcer").textContent = `${how}${said ? `Answer: ${said}` : ""}`;
  }

  #save() {
    if (!this.#conversation.save()) showToast("The conversation is too long to be kept over a reload; export it.");
  }

  retry(index = this.#conversation.messages.length - 1) {
    if (this.#turn || !this.#info || this.#conversation.messages[index]?.role !== "assistant") return;
    this.#cut(index);
    this.#answer();
  }

  edit(index) {
    if (this.#turn || document.querySelector(".editing") || this.#conversation.messages[index]?.role !== "user") return;
    this.#views[index].edit((text) => {
      if (this.#turn || !this.#info) return false;
      this.#cut(index);
      this.send(text);
      return true;
    });
  }

  startAnew() {
    this.stop();
    const before = this.#conversation;
    if (before.messages.length) {
      showToast("This is a new conversation.", () => {
        this.stop();
        this.#replace(before);
        this.#save();
      });
    }
    this.#replace(new Conversation());
    this.#save();
    this.#prompt.focus();
  }

  /** End the answer that is coming, if one is. */
  stop() {
    this.#turn?.stop();
  }

  get isAnswering() {
    return this.#turn !== null;
  }

  /** Which message a node of the page belongs to; -1: none. */
  indexOf(node) {
    return this.#views.findIndex((view) => view.node.contains(node));
  }

  copy(index) {
    copyText(this.#conversation.messages[index].content);
  }

  copyLast() {
    const index = this.#conversation.messages.findLastIndex(({ role, content }) => role === "assistant" && content);
    if (index !== -1) this.copy(index);
  }

  editLast() {
    this.edit(this.#conversation.messages.findLastIndex((message) => message.role === "user"));
  }

  /** The page is left: what has come of an answer is kept. */
  leave() {
    const last = this.#conversation.messages.at(-1);
    if (!this.#turn || !last || last.ending || last.role === "user") return;
    this.stop();
    last.ending = "stopped";
    this.#conversation.save();
  }

  exportFile() {
    const stamp = new Date().toISOString().slice(0, 16).replaceAll(":", "-");
    download(`remuda-chat-${stamp}.json`, this.#conversation.toFile(this.#model.value, this.#settings.system));
  }

  async importFile(file) {
    try {
      const { conversation, system } = await readConversation(file);
      this.stop();
      this.#settings.typed.system = system;
      this.#settings.save();
      this.#replace(conversation);
      this.#save();
      showToast(`Imported ${conversation.messages.length} messages.`);
    } catch (problem) {
      if (!(problem instanceof FileProblem)) throw problem;
      showToast(problem.message);
    }
  }

  #askForKey() {
    this.keyDialog.open(this.#api.key
      ? "The server does not know the key that was given. Give another."
      : "This server asks for an API key.");
  }

  #notice(text) {
    const notice = document.getElementById("notice");
    notice.hidden = !text;
    notice.querySelector("p").textContent = text;
  }

  /** What depends on whether an answer is coming, and on whether there are messages. */
  showState() {
    const isBusy = this.#turn !== null;
    document.body.classList.toggle("busy", isBusy);
    document.getElementById("send").hidden = isBusy;
    document.getElementById("send").disabled = !this.#info || this.#prompt.value.trim() === "";
    document.getElementById("stop").hidden = !isBusy;
    document.getElementById("welcome").hidden = this.#views.length > 0;
    document.getElementById("export").disabled = isBusy || this.#views.length === 0;
    this.showJump();
  }

  showTheme() {
    document.getElementById("theme").setAttribute("aria-label", Theme.isDark ? "Light theme" : "Dark theme");
  }

  get #isAtEnd() {
    return this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < NEAR_END_PX;
  }

  toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  showJump() {
    document.getElementById("jump").hidden = this.#isAtEnd;
  }
}

new App().start();

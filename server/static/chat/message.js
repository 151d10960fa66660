"use strict";
// One message on the page: its text, what may be done with it, and its figures.

const ENDINGS = { length: "cut at the most new tokens", stopped: "stopped" };

function actionButton(action, label, className = "quiet") {
  const made = element("button", className, label);
  made.type = "button";
  made.dataset.action = action;
  return made;
}

class MessageView {
  #text = element("div", "text");
  #foot = element("div", "foot");
  #stream = null;

  /** isPlain: the text is no Markdown. */
  constructor(message, isPlain) {
    this.message = message;
    this.isPlain = isPlain;
    const isUser = message.role === "user";
    this.node = element("li", `message ${message.role}`, element("span", "unseen", isUser ? "You:" : "Answer:"), this.#text, this.#foot);
    this.#text.dir = "auto";
    if (isUser || message.ending) this.show();
  }

  /** Show the message as it is. */
  show() {
    const { role, content } = this.message;
    if (role === "user" || this.isPlain) this.#text.replaceChildren(element("p", "", content));
    else this.#text.replaceChildren(renderMarkdown(content));
    this.#showFoot();
  }

  /** Begin to show an answer that is still to come. */
  begin() {
    this.#text.replaceChildren(element("p", "waiting", element("span", "unseen", "Waiting for the first token")));
    this.node.setAttribute("aria-busy", "true");
  }

  append(text) {
    if (!this.#stream) {
      this.#text.replaceChildren();
      this.#stream = this.isPlain ? new PlainStream(this.#text) : new MarkdownStream(this.#text);
    }
    this.#stream.append(text);
  }

  flush() {
    if (this.#stream) this.#stream.flush();
  }

  /** The answer has ended, as its message says. */
  end() {
    if (this.#stream) this.#stream.finish();
    else this.#text.replaceChildren();
    this.#stream = null;
    this.node.removeAttribute("aria-busy");
    this.#showFoot();
  }

  /** Let the user change the text; `send` gets the new one, and says whether it could be sent. */
  edit(send) {
    const field = element("textarea");
    field.value = this.message.content;
    field.setAttribute("aria-label", "Edit your message");
    const note = element("p", "hint", "What comes after it is dropped and answered anew.");
    const save = actionButton("save-edit", "Save and send", "primary");
    const cancel = actionButton("cancel-edit", "Cancel");
    this.node.classList.add("editing");
    this.#text.replaceChildren(field, note);
    this.#foot.replaceChildren(cancel, save);
    save.addEventListener("click", () => {
      if (field.value.trim() === "" || !send(field.value)) field.focus();
    });
    cancel.addEventListener("click", () => {
      this.node.classList.remove("editing");
      this.show();
      this.node.querySelector("button").focus();
    });
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") cancel.click();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save.click();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const fit = () => fitHeight(field);
    field.addEventListener("input", fit);
    fit();
    field.focus();
  }

  #showFoot() {
    const { role, ending, content, failure } = this.message;
    this.#foot.replaceChildren();
    if (role === "user") {
      this.#foot.append(actionButton("edit", "Edit"));
      return;
    }
    if (ending === "failed") {
      const again = actionButton("retry", "Try again", "primary");
      this.#foot.append(element("div", "failure", element("p", "", failure), again));
    }
    if (content) this.#foot.append(actionButton("copy", "Copy"));
    if (ending !== "failed") this.#foot.append(actionButton("retry", "Retry"));
    const numbers = this.#numbers();
    if (numbers) this.#foot.append(element("span", "numbers", numbers));
  }

  #numbers() {
    const { figures, ending } = this.message;
    const parts = [];
    if (figures && figures.answerTokens) parts.push(`${figures.answerTokens.toLocaleString("en")} tokens`);
    if (figures && figures.rate) parts.push(`${shownRate(figures.rate)} a second`);
    if (figures && figures.firstMs) parts.push(`first after ${shownSeconds(figures.firstMs)}`);
    if (ENDINGS[ending]) parts.push(ENDINGS[ending]);
    return parts.join(" · ");
  }
}

/** A text field as high as its text. */
function fitHeight(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

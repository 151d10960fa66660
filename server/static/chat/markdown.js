"use strict";
// Markdown as blocks: headings, lists, quotes, code, paragraphs. A blank line outside code ends every block, so
// that what stands before one never changes: MarkdownStream renders that once and only the rest anew.

const MAX_QUOTE_DEPTH = 6;

/** What opens a code block: its fence, and the name of the language. */
function openingFence(line) {
  const found = /^[ \t]{0,12}(`{3,}|~{3,})[ \t]*([\w+#.-]{0,30})[^`]*$/.exec(line);
  return found && { mark: found[1], language: found[2], indent: line.length - line.trimStart().length };
}

function closesFence(line, fence) {
  const text = line.trim();
  return text.length >= fence.mark.length && text === fence.mark[0].repeat(text.length);
}

const LIST_ITEM = /^([ \t]{0,24})([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;

function isRule(line) {
  const marks = line.replaceAll(" ", "");
  return marks.length >= 3 && "-*_".includes(marks[0]) && marks === marks[0].repeat(marks.length);
}

/** The nodes of a whole text. */
function renderMarkdown(text) {
  const made = document.createDocumentFragment();
  made.append(...new BlockParser(text.split("\n"), 0).parse());
  return made;
}

class BlockParser {
  #lines;
  #depth;
  #at = 0;

  constructor(lines, depth) {
    this.#lines = lines;
    this.#depth = depth;
  }

  parse() {
    const nodes = [];
    while (this.#at < this.#lines.length) {
      if (this.#lines[this.#at].trim() === "") this.#at += 1;
      else nodes.push(this.#block());
    }
    return nodes;
  }

  #block() {
    const line = this.#lines[this.#at];
    const fence = openingFence(line);
    if (fence) return this.#code(fence);
    if (isRule(line)) return this.#single(element("hr"));
    const heading = /^ {0,3}(#{1,6})[ \t]+/.exec(line);
    if (heading) return this.#single(this.#heading(heading[1].length, line.slice(heading[0].length)));
    if (this.#depth < MAX_QUOTE_DEPTH && line.trimStart().startsWith(">")) return this.#quote();
    if (LIST_ITEM.test(line)) return this.#list();
    return this.#paragraph();
  }

  #single(node) {
    this.#at += 1;
    return node;
  }

  /** Two levels down, as the page has headings of its own. */
  #heading(level, text) {
    let end = text.trimEnd();
    while (end.endsWith("#")) end = end.slice(0, -1);
    return element(`h${Math.min(6, level + 2)}`, "", ...new InlineParser(end.trim()).parse());
  }

  #code(fence) {
    const lines = [];
    for (this.#at += 1; this.#at < this.#lines.length; this.#at += 1) {
      const line = this.#lines[this.#at];
      if (closesFence(line, fence)) {
        this.#at += 1;
        break;
      }
      lines.push(line.slice(Math.min(fence.indent, line.length - line.trimStart().length)));
    }
    const copy = element("button", "quiet copy-code", "Copy code");
    copy.type = "button";
    const code = element("pre", "", element("code", "", lines.join("\n")));
    // It can be scrolled, so it can be reached.
    code.tabIndex = 0;
    return element("div", "code", element("div", "bar", element("span", "", fence.language), copy), code);
  }

  #quote() {
    const lines = [];
    for (; this.#at < this.#lines.length; this.#at += 1) {
      const line = this.#lines[this.#at].trimStart();
      if (!line.startsWith(">")) break;
      lines.push(line.slice(line[1] === " " ? 2 : 1));
    }
    return element("blockquote", "", ...new BlockParser(lines, this.#depth + 1).parse());
  }

  /** The items of one list, and below them those that are further in. */
  #list() {
    const first = LIST_ITEM.exec(this.#lines[this.#at]);
    const stack = [BlockParser.#newList(first)];
    for (; this.#at < this.#lines.length; this.#at += 1) {
      const line = this.#lines[this.#at];
      const found = LIST_ITEM.exec(line);
      if (!found) {
        if (line.trim() === "" || openingFence(line) || !/^[ \t]/.test(line)) break;
        BlockParser.#fill(stack.at(-1).node.lastElementChild, `\n${line.trim()}`);
        continue;
      }
      const indent = found[1].length;
      while (stack.length > 1 && indent < stack.at(-1).indent) stack.pop();
      if (indent > stack.at(-1).indent + 1 && stack.at(-1).node.lastElementChild) {
        const inner = BlockParser.#newList(found);
        stack.at(-1).node.lastElementChild.append(inner.node);
        stack.push(inner);
      }
      const item = element("li");
      BlockParser.#fill(item, line.slice(found[0].length));
      stack.at(-1).node.append(item);
    }
    return stack[0].node;
  }

  static #newList(found) {
    const isOrdered = /\d/.test(found[2]);
    const node = element(isOrdered ? "ol" : "ul");
    const start = Number.parseInt(found[2], 10);
    if (isOrdered && start !== 1) node.start = start;
    return { node, indent: found[1].length };
  }

  static #fill(item, text) {
    item.append(...new InlineParser(text).parse());
  }

  #paragraph() {
    const lines = [];
    do {
      lines.push(this.#lines[this.#at]);
      this.#at += 1;
    } while (this.#at < this.#lines.length && !this.#beginsBlock(this.#lines[this.#at]));
    return element("p", "", ...new InlineParser(lines.join("\n").trim()).parse());
  }

  #beginsBlock(line) {
    if (line.trim() === "" || openingFence(line) || isRule(line) || /^ {0,3}#{1,6}[ \t]/.test(line)) return true;
    return LIST_ITEM.test(line) || (this.#depth < MAX_QUOTE_DEPTH && line.trimStart().startsWith(">"));
  }
}

/** A text that grows, rendered into `root`. Call `flush` as often as it should be seen. */
class MarkdownStream {
  // A block beyond this is shown as it comes, and rendered when it ends.
  static #MAX_ANEW = 4000;

  #root;
  #live = element("div", "live");
  // What is not yet ended by a blank line; how much of it has been looked at, and shown.
  #tail = "";
  #seen = 0;
  #shown = 0;
  #fence = null;
  #raw = null;

  constructor(root) {
    this.#root = root;
    root.append(this.#live);
  }

  append(text) {
    this.#tail += text;
  }

  flush() {
    const end = this.#settledEnd();
    if (end > 0) {
      this.#live.before(renderMarkdown(this.#tail.slice(0, end)));
      this.#tail = this.#tail.slice(end);
      this.#seen -= end;
      this.#shown = 0;
      this.#raw = null;
      this.#live.replaceChildren();
    }
    if (this.#tail.length > this.#shown) this.#showTail();
  }

  /** Render what is left; the stream is over. */
  finish() {
    this.#live.replaceWith(renderMarkdown(this.#tail));
  }

  /** The end of the last blank line outside code among the whole lines; 0 if there is none. */
  #settledEnd() {
    let end = 0;
    for (;;) {
      const at = this.#tail.indexOf("\n", this.#seen);
      if (at === -1) return end;
      const line = this.#tail.slice(this.#seen, at);
      this.#seen = at + 1;
      if (this.#fence) this.#fence = closesFence(line, this.#fence) ? null : this.#fence;
      else if (line.trim() === "") end = at + 1;
      else this.#fence = openingFence(line);
    }
  }

  #showTail() {
    if (this.#tail.length <= MarkdownStream.#MAX_ANEW) {
      this.#live.replaceChildren(renderMarkdown(this.#tail));
    } else {
      if (!this.#raw) this.#raw = this.#beginRaw();
      this.#raw.appendData(this.#tail.slice(this.#shown));
    }
    this.#shown = this.#tail.length;
  }

  #beginRaw() {
    const raw = document.createTextNode("");
    const last = this.#live.lastElementChild || this.#live.appendChild(element("p"));
    (last.querySelector("pre code") || last).append(raw);
    return raw;
  }
}

/** A text that grows and is no Markdown: that of a model which only continues. */
class PlainStream {
  #shown = document.createTextNode("");
  #pending = "";

  constructor(root) {
    root.append(element("p", "", this.#shown));
  }

  append(text) {
    this.#pending += text;
  }

  flush() {
    if (this.#pending) this.#shown.appendData(this.#pending);
    this.#pending = "";
  }

  finish() {
    this.flush();
  }
}

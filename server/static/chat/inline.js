"use strict";
// Markdown inside a line: code, emphasis, links. Text becomes text nodes and never HTML; its cost is linear.

const MAX_INLINE_DEPTH = 6;
const MAX_LINK_CHARS = 2000;
const EMPHASIS = [["***", "strong"], ["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** An element with text or children. */
function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** The address, if it is one that a link may have: absolute, http or https. Else null. */
function safeUrl(text) {
  if (text.length > MAX_LINK_CHARS || !/^https?:\/\//i.test(text)) return null;
  try {
    return new URL(text).href;
  } catch {
    return null;
  }
}

function link(url, ...label) {
  const made = element("a", "", ...label);
  made.href = url;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  made.title = url;
  return made;
}

/** The nodes of one piece of text. */
class InlineParser {
  #text;
  #depth;
  #nodes = [];
  // Where the next of each delimiter is, so that looking for closers stays linear.
  #found = new Map();

  constructor(text, depth = 0) {
    this.#text = text;
    this.#depth = depth;
  }

  parse() {
    let plain = 0;
    let i = 0;
    while (i < this.#text.length) {
      const taken = this.#depth < MAX_INLINE_DEPTH ? this.#at(i) : null;
      if (taken) {
        this.#plain(plain, i);
        this.#nodes.push(taken.node);
        i = plain = taken.end;
      } else {
        i += 1;
      }
    }
    this.#plain(plain, i);
    return this.#nodes;
  }

  #plain(from, to) {
    if (from < to) this.#nodes.push(document.createTextNode(this.#text.slice(from, to)));
  }

  /** What begins at `i`, with the index after it; null where nothing does. */
  #at(i) {
    const c = this.#text[i];
    if (c === "\\") return this.#escape(i);
    if (c === "`") return this.#code(i);
    if (c === "[") return this.#link(i);
    if (c === "h" || c === "H") return this.#address(i);
    if (c === "*" || c === "_" || c === "~") return this.#emphasis(i);
    return null;
  }

  #next(delimiter, from) {
    const known = this.#found.get(delimiter);
    if (known !== undefined && known.from <= from && (known.at === -1 || known.at >= from)) return known.at;
    const at = this.#text.indexOf(delimiter, from);
    this.#found.set(delimiter, { from, at });
    return at;
  }

  #escape(i) {
    const escaped = this.#text[i + 1];
    if (!escaped || !"\\`*_~[]()#+-.!>".includes(escaped)) return null;
    return { node: document.createTextNode(escaped), end: i + 2 };
  }

  #code(i) {
    let length = 1;
    while (this.#text[i + length] === "`") length += 1;
    const ticks = "`".repeat(length);
    const at = this.#next(ticks, i + length);
    if (at === -1 || this.#text[at + length] === "`") return { node: document.createTextNode(ticks), end: i + length };
    const inside = this.#text.slice(i + length, at).replaceAll("\n", " ");
    const isPadded = inside.length > 2 && inside.startsWith(" ") && inside.endsWith(" ");
    return { node: element("code", "", isPadded ? inside.slice(1, -1) : inside), end: at + length };
  }

  #link(i) {
    const middle = this.#next("](", i);
    if (middle === -1 || middle - i > MAX_LINK_CHARS) return null;
    const end = this.#next(")", middle);
    if (end === -1 || end - middle > MAX_LINK_CHARS) return null;
    const url = safeUrl(this.#text.slice(middle + 2, end).trim());
    if (url === null) return null;
    const label = this.#text.slice(i + 1, middle);
    if (label.includes("[")) return null;
    // No links inside of links.
    const inside = new InlineParser(label, MAX_INLINE_DEPTH - 1).parse().map((node) => node.href ? node.textContent : node);
    return { node: link(url, ...inside), end: end + 1 };
  }

  #address(i) {
    if (i > 0 && /\w/.test(this.#text[i - 1])) return null;
    const pattern = /https?:\/\/[^\s<>"'`*|\\^{}[\]]{1,2000}/iy;
    pattern.lastIndex = i;
    const found = pattern.exec(this.#text);
    if (!found) return null;
    let shown = found[0];
    while (".,;:!?".includes(shown.at(-1)) || (shown.endsWith(")") && !shown.includes("("))) shown = shown.slice(0, -1);
    const url = safeUrl(shown);
    return url === null ? null : { node: link(url, shown), end: i + shown.length };
  }

  #emphasis(i) {
    const text = this.#text;
    for (const [delimiter, name] of EMPHASIS) {
      if (!text.startsWith(delimiter, i)) continue;
      const start = i + delimiter.length;
      if (start >= text.length || /\s/.test(text[start])) return null;
      if (delimiter[0] === "_" && i > 0 && /\w/.test(text[i - 1])) return null;
      const end = this.#closer(delimiter, start);
      if (end === -1) continue;
      const inside = new InlineParser(text.slice(start, end), this.#depth + 1).parse();
      const made = element(name, "", ...(delimiter === "***" ? [element("em", "", ...inside)] : inside));
      return { node: made, end: end + delimiter.length };
    }
    return null;
  }

  /** Where `delimiter` closes what begins at `start`; looks at a few places only. */
  #closer(delimiter, start) {
    let at = this.#next(delimiter, start + 1);
    for (let tries = 0; at !== -1 && tries < 4; tries += 1) {
      const isRun = delimiter.length === 1 && (this.#text[at + 1] === delimiter || this.#text[at - 1] === delimiter);
      const isWord = delimiter[0] === "_" && /\w/.test(this.#text[at + delimiter.length] || "");
      if (!isRun && !isWord && !/\s/.test(this.#text[at - 1])) return at;
      at = this.#text.indexOf(delimiter, at + (isRun ? 2 : delimiter.length));
    }
    return -1;
  }
}

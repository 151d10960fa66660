"use strict";
// The live figures, and the picture of what a recurrent model is for: context grows, its state does not.

const CHART = { left: 8, right: 272, top: 18, bottom: 124 };
const MIN_CHART_TOKENS = 64;

/** Bytes for a person: 311 kB, 12.6 MB. */
function shownBytes(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  let value = bytes;
  while (value >= 999.5 && i < units.length - 1) {
    value /= 1000;
    i += 1;
  }
  return `${i && value < 99.5 ? Number(value.toPrecision(3)) : Math.round(value)} ${units[i]}`;
}

/** A number for a sentence: 12,000, 4 million, 1.3 billion. */
function shownCount(number) {
  const [unit, name] = number < 1e6 ? [1, ""] : number < 1e9 ? [1e6, " million"] : [1e9, " billion"];
  return `${unit === 1 ? number.toLocaleString("en") : Number((number / unit).toPrecision(2))}${name}`;
}

function shownSeconds(ms) {
  return ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
}

/** Tokens a second: 8.5, 131, 2,400. */
function shownRate(rate) {
  return rate < 99.5 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}

/** The next of 1, 2, 5, 10, 20 … that is not below. */
function roundUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

/**
 * Bytes that a Transformer of as many parameters keeps of one token: keys and values of each layer. It has half as
 * many layers, as a Longhorn layer has 6 · width² weights (Mamba's block, arXiv 2312.00752) and a Transformer's 12.
 */
function cacheShape(info) {
  const layers = Math.max(1, Math.round(info.num_layers / 2));
  // As caches are commonly kept, whatever the type of the weights; the load test's report assumes the same.
  const bytes = 2;
  return { layers, bytes, perToken: 2 * layers * info.hidden_size * bytes };
}

class Figures {
  #info = null;
  #cells = Object.fromEntries(["rate", "first", "context", "state"].map((id) => [id, document.getElementById(id)]));
  #chart = new MemoryChart(document.getElementById("chart"));

  /** info: of the server's /info. */
  set info(info) {
    this.#info = info;
    const { layers, bytes } = cacheShape(info);
    this.#cells.state.textContent = shownBytes(info.slot_bytes);
    document.getElementById("legend-state").textContent = shownBytes(info.slot_bytes);
    document.getElementById("basis").textContent =
      `For comparison a Transformer of as many parameters, with half the layers: ` +
      `2 × ${layers} layers × ${info.hidden_size} wide × ${bytes} bytes for each token.`;
  }

  /** firstMs, rate, numTokens: null where unknown. isEstimate: of numTokens, until the server has counted. */
  show({ firstMs, rate, numTokens, isEstimate }) {
    this.#cells.rate.textContent = rate === null ? "–" : shownRate(rate);
    this.#cells.first.textContent = firstMs === null ? "–" : shownSeconds(firstMs);
    const count = numTokens === null ? "–" : `${isEstimate ? "≈ " : ""}${numTokens.toLocaleString("en")}`;
    this.#cells.context.textContent = count;
    this.#cells.context.title = isEstimate ? "Estimated until the server has counted" : "";
    if (this.#info) this.#showMemory(numTokens || 0);
  }

  #showMemory(numTokens) {
    const state = this.#info.slot_bytes;
    const { perToken } = cacheShape(this.#info);
    document.getElementById("legend-other").textContent = shownBytes(numTokens * perToken);
    this.#chart.draw(numTokens, state, perToken);
  }
}

/** Bytes against tokens of context: the state's line is level, that of a KV cache rises. */
class MemoryChart {
  #svg;
  #parts;

  constructor(svg) {
    this.#svg = svg;
    const make = (name, className) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      made.setAttribute("class", className);
      svg.append(made);
      return made;
    };
    this.#parts = {
      axis: make("path", "axis"), fill: make("path", "other-fill"),
      otherAhead: make("path", "other ahead"), other: make("path", "other"),
      stateAhead: make("path", "stays ahead"), state: make("path", "stays"),
      now: make("path", "now"), otherDot: make("circle", "other"), stateDot: make("circle", "stays"),
      top: make("text", "label"), zero: make("text", "label"), end: make("text", "label end"),
    };
  }

  draw(numTokens, state, perToken) {
    const most = roundUp(Math.max(MIN_CHART_TOKENS, numTokens * 1.25, (2 * state) / perToken));
    const peak = Math.max(state * 1.3, most * perToken);
    const x = (tokens) => CHART.left + ((CHART.right - CHART.left) * tokens) / most;
    const y = (bytes) => CHART.bottom - ((CHART.bottom - CHART.top) * bytes) / peak;
    const line = (...points) => `M${points.map((point) => point.map((at) => at.toFixed(1)).join(" ")).join("L")}`;
    const [now, level, cache] = [x(numTokens), y(state), y(numTokens * perToken)];
    const draw = (name, path) => this.#parts[name].setAttribute("d", path);
    draw("axis", line([CHART.left, CHART.bottom], [CHART.right, CHART.bottom]));
    draw("fill", `${line([CHART.left, CHART.bottom], [now, cache], [now, CHART.bottom])}Z`);
    draw("other", line([CHART.left, CHART.bottom], [now, cache]));
    draw("otherAhead", line([now, cache], [x(most), y(most * perToken)]));
    draw("state", line([CHART.left, level], [now, level]));
    draw("stateAhead", line([now, level], [CHART.right, level]));
    draw("now", line([now, CHART.top], [now, CHART.bottom]));
    this.#place("otherDot", { cx: now, cy: cache, r: 3.5 });
    this.#place("stateDot", { cx: now, cy: level, r: 4.5 });
    this.#place("top", { x: CHART.left, y: 11 }, shownBytes(peak));
    this.#place("zero", { x: CHART.left, y: 142 }, "0");
    this.#place("end", { x: CHART.right, y: 142 }, `${most.toLocaleString("en")} tokens`);
    this.#svg.setAttribute("aria-label",
      `At ${numTokens} tokens of context the state takes ${shownBytes(state)}, as at any length; ` +
      `a KV cache would take ${shownBytes(numTokens * perToken)}.`);
  }

  #place(name, attributes, text = "") {
    const part = this.#parts[name];
    for (const [attribute, value] of Object.entries(attributes)) part.setAttribute(attribute, value);
    if (text) part.textContent = text;
  }
}


// Token by token. Texts of tokens are text nodes, too.
let tokenQuestions = [];
const tokenSection = document.getElementById("token-by-token");

const decimals = (digits) => (number) => number.toFixed(digits).replace("-", "−");
const signed = (text, number) => (number > 0 ? `+${text}` : text);
const small = (number) => (number === 0 ? "0" : Math.abs(number) < 1e-3 ? number.toExponential(1).replace(/-/g, "−") : decimals(3)(number));
const maximum = (responses, key) => responses.flatMap((response) => response[key] || []).reduce((most, number) => Math.max(most, Math.abs(number)), 1e-9);
const mixed = (color, strength) => `color-mix(in srgb, var(${color}) ${Math.round(62 * Math.min(1, strength))}%, transparent)`;
const twoSided = (ratio, low, high) => mixed(ratio < 0 ? low : high, Math.abs(ratio));

// What tokens can be colored by: the column, its meaning, the ends of the scale, and a color from -1 (left) to 1 (right).
const TOKEN_COLORS = {
  values: {
    name: "critic's value",
    meaning: "V(x, y₁…yₜ): the critic's estimate, after this token, of the chance that the response is right. Iteration 0 is before this run trained it.",
    ends: () => ["0: wrong", "1: right"],
    ratio: (number) => 2 * number - 1, low: "--bad", high: "--good",
  },
  advantages: {
    name: "advantage",
    meaning: "How much better the method takes the response to be than what was to be expected before this token. Above 0 the token becomes more likely.",
    ends: (most) => [`−${small(most)}`, `+${small(most)}`],
    ratio: (number, most) => number / most, low: "--bad", high: "--good",
  },
  log_probs: {
    name: "log-prob",
    meaning: "How likely the policy found the token, by the trainer. 0 is certain; the stronger the color, the more of a surprise.",
    ends: () => ["0: certain", "−5 or less: a surprise"],
    ratio: (number) => Math.min(1, -number / 5), low: "--accent", high: "--accent", oneSided: true,
  },
  differences: {
    name: "generator against trainer",
    meaning: "The trainer's log-prob less the generator's. Both have the same weights, so it should be 0 up to rounding.",
    ends: (most) => [`−${small(most)}`, `+${small(most)}`],
    ratio: (number, most) => number / most, low: "--color-2", high: "--color-1",
  },
};

// The number of a token; null where the run could not compute it.
const numberOf = (response, key, index) => response[key]?.[index] ?? null;

function tokenNumbers(response, index) {
  const position = index < response.first ? index : index + response.left_out;
  const parts = [`token ${position + 1} of ${response.tokens}`];
  const [value, advantage, logProb, difference] = Object.keys(TOKEN_COLORS).map((key) => numberOf(response, key, index));
  if (value !== null) {
    const before = index === 0 ? response.value_before : index === response.first && response.left_out ? null : response.values[index - 1];
    parts.push(`value ${before === null ? "" : `${decimals(2)(before)} → `}${decimals(2)(value)}`);
  }
  if (advantage !== null) parts.push(`advantage ${signed(decimals(3)(advantage), advantage)}`);
  if (logProb !== null) parts.push(`log-prob ${decimals(3)(logProb)}`);
  if (logProb !== null && difference !== null) {
    parts.push(`generator's ${decimals(3)(logProb - difference)}, difference ${signed(small(difference), difference)}`);
  }
  return parts;
}

function visible(text) {
  if (text === "") return "·"; // the token begins a character that a later one completes
  return text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
}

function tokenText(response, color, most, readout) {
  const box = make("div", "token-text");
  box.dir = "auto";
  const spans = response.texts.map((text, index) => {
    const span = make("span", text === "" ? "token part" : "token", visible(text));
    span.tabIndex = index ? -1 : 0;
    span.dataset.index = index;
    const scale = TOKEN_COLORS[color], number = numberOf(response, color, index);
    if (number !== null) span.style.backgroundColor = twoSided(scale.ratio(number, most), scale.low, scale.high);
    return span;
  });
  spans.forEach((span, index) => {
    if (index === response.first && response.left_out) box.append(make("span", "gap", ` […${response.left_out} tokens left out…] `));
    box.append(span);
  });
  const show = (span) => {
    box.querySelector(".shown")?.classList.remove("shown");
    span.classList.add("shown");
    const index = Number(span.dataset.index);
    readout.replaceChildren(make("bdi", "", JSON.stringify(response.texts[index])), ...tokenNumbers(response, index).map((text) => make("span", "", text)));
  };
  const tokenOf = (event) => event.target.closest(".token");
  box.addEventListener("pointerover", (event) => tokenOf(event) && show(tokenOf(event)));
  box.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event)));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && tokenOf(event) && spans[Number(tokenOf(event).dataset.index) + step];
    if (!next) return;
    event.preventDefault();
    tokenOf(event).tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return box;
}

function tokenColumn(responses, start) {
  const column = make("div", "token-column");
  const label = make("label", "frames", "Iteration ");
  const output = make("output"), slider = make("input"), header = make("p", "token-header"), readout = make("p", "token-readout"), holder = make("div");
  slider.type = "range";
  slider.max = responses.length - 1;
  slider.value = start;
  label.append(output, slider);
  slider.hidden = responses.length === 1;
  readout.setAttribute("aria-live", "polite");
  column.append(label, header, readout, holder);
  const redraw = () => {
    const response = responses[Number(slider.value)], color = document.getElementById("token-color").value;
    const verdict = response.correct === null ? "not graded" : response.correct ? "right" : "wrong";
    column.className = `token-column ${verdict}`;
    output.textContent = response.iteration;
    slider.setAttribute("aria-valuetext", `iteration ${response.iteration}`);
    header.replaceChildren(make("b", "", verdict), ` · ${response.tokens} tokens${response.finish_reason === "length" ? ", cut at the limit" : ""}`,
      response.value_before === null ? "" : ` · value before the first token ${decimals(2)(response.value_before)}`);
    readout.replaceChildren(make("span", "", "Point at a token for its numbers."));
    holder.replaceChildren(tokenText(response, color, maximum(responses, color), readout));
  };
  slider.addEventListener("input", redraw);
  redraw();
  return column;
}

function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, name]) => {
    const option = make("option", "", name);
    option.value = value;
    return option;
  }));
  if (options.some(([value]) => String(value) === before)) select.value = before;
}

function showTokens() {
  const question = tokenQuestions[Number(document.getElementById("token-question").value)];
  const samples = [...new Set(question.responses.map((response) => response.sample))].sort((a, b) => a - b);
  fill(document.getElementById("token-sample"), samples.map((sample, index) => [sample, `${index + 1} of ${samples.length}`]));
  const sample = Number(document.getElementById("token-sample").value);
  const responses = question.responses.filter((response) => response.sample === sample);
  fill(document.getElementById("token-color"), Object.entries(TOKEN_COLORS)
    .filter(([key]) => responses.some((response) => response[key])).map(([key, { name }]) => [key, name]));
  const color = document.getElementById("token-color").value, scale = TOKEN_COLORS[color];
  const note = question.question_set === "labeled" ? " These are labeled questions: critic and policy had not learned from this response yet." : "";
  document.getElementById("token-meaning").textContent = (scale ? scale.meaning : "No token has a number: the text has no color.") + note;
  const [left, bar, right] = document.getElementById("token-scale").children;
  document.getElementById("token-scale").hidden = !scale;
  if (scale) [left.textContent, right.textContent] = scale.ends(maximum(responses, color));
  if (scale) bar.style.backgroundImage = `linear-gradient(to right, ${scale.oneSided ? "transparent" : mixed(scale.low, 1)}, ${scale.oneSided ? "" : "transparent, "}${mixed(scale.high, 1)})`;
  document.getElementById("token-whole").textContent = question.text;
  const columns = responses.length > 1 ? [0, responses.length - 1] : [0];
  document.getElementById("token-columns").replaceChildren(...columns.map((start) => tokenColumn(responses, start)));
}

function openTokens() {
  tokenQuestions = JSON.parse(document.getElementById("tokens").textContent);
  const cut = (text) => (text.length > 44 ? `…${text.slice(-44)}` : text);
  fill(document.getElementById("token-question"), tokenQuestions.map((question, index) => [index, `${question.question_set}: ${cut(question.text)}`]));
  for (const id of ["token-question", "token-sample", "token-color"]) document.getElementById(id).addEventListener("change", showTokens);
  showTokens();
}
// Thousands of tokens can wait until the page answers.
if (tokenSection) addEventListener("DOMContentLoaded", () => setTimeout(openTokens));

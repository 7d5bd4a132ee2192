"use strict";

// Panels: drawn by Plotly one after the other, and again when the color scheme changes.
const panels = JSON.parse(document.getElementById("panels").textContent);
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const transparent = (color, opacity) => color + Math.round(255 * opacity).toString(16).padStart(2, "0");

// A panel with frames shows the lines of one iteration, which its slider chooses.
function traces(panel, frame) {
  const lines = panel.frames.length ? panel.frames[frame].lines : panel.lines;
  const most = Math.max(...lines.flatMap((line) => line.counts || []), 1);
  return lines.flatMap((line) => {
    const color = cssColor(`--color-${line.color}`);
    if (panel.stacked) {
      return [{ type: "bar", name: line.name, x: line.x, y: line.y, marker: { color } }];
    }
    const band = line.low ? [
      { x: line.x, y: line.low, mode: "lines", line: { width: 0 }, hoverinfo: "skip" },
      { x: line.x, y: line.high, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: transparent(color, 0.16), hoverinfo: "skip" },
    ] : [];
    const markers = line.x.length <= 40;
    return [...band, {
      name: line.name, x: line.x, y: line.y, mode: markers ? "lines+markers" : "lines",
      line: { color, width: 1.8 }, marker: { color, size: line.counts ? line.counts.map((count) => 5 + 11 * Math.sqrt(count / most)) : 4, opacity: 1, line: { width: 0 } },
      customdata: line.low ? line.low.map((low, point) => [low, line.high[point]]) : line.counts,
      hovertemplate: line.counts
        ? "value %{x:.2f}: %{y:.1%} of %{customdata} right<extra></extra>"
        : panel.share
        ? "%{y:.1%}" + (line.low ? " [%{customdata[0]:.1%}, %{customdata[1]:.1%}]" : "")
        : "%{y:.4~g}",
    }];
  });
}

function draw(element) {
  const panel = panels[Number(element.dataset.panel)];
  const soft = cssColor("--soft"), faint = cssColor("--faint"), ink = cssColor("--ink");
  const axis = { gridcolor: faint, linecolor: faint, zeroline: false, tickfont: { color: soft, size: 11 }, automargin: true };
  const layout = {
    autosize: true, height: 220, margin: { l: 44, r: 8, t: 8, b: 36 }, showlegend: false,
    barmode: panel.stacked ? "stack" : undefined, bargap: 0.15,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    hovermode: panel.diagonal ? "closest" : "x unified", hoverlabel: { bgcolor: cssColor("--raised"), bordercolor: faint, font: { color: ink, size: 12 } },
    xaxis: { ...axis, showgrid: false, title: { text: panel.x_title, font: { size: 11, color: soft }, standoff: 6 } },
    yaxis: { ...axis, tickformat: panel.share ? ".0%" : "~g", nticks: 6, ...(panel.share ? { range: [0, 1.02] } : {}) },
    shapes: panel.reference === null ? [] : [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: panel.reference, y1: panel.reference,
      line: { color: soft, width: 1, dash: "dot" },
    }],
  };
  if (panel.diagonal) {
    // A critic's values may leave [0, 1]. All frames have one range, so that the picture holds still.
    const values = panel.frames.flatMap((frame) => frame.lines.flatMap((line) => line.x));
    layout.xaxis.range = [Math.min(0, ...values) - 0.03, Math.max(1, ...values) + 0.03];
    layout.yaxis.range = [-0.03, 1.03];
    layout.shapes = [{ type: "line", x0: 0, x1: 1, y0: 0, y1: 1, line: { color: soft, width: 1, dash: "dot" } }];
  }
  const slider = element.parentElement.querySelector("input[type=range]");
  Plotly.react(element, traces(panel, slider ? Number(slider.value) : 0), layout, { displayModeBar: false, responsive: true });
  element.dataset.drawn = "yes";
}

const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const slider = plot.parentElement.querySelector("input[type=range]");
  if (!slider) continue;
  slider.addEventListener("input", () => {
    const iteration = panels[Number(plot.dataset.panel)].frames[Number(slider.value)].iteration;
    slider.parentElement.querySelector("output").textContent = iteration;
    slider.setAttribute("aria-valuetext", `iteration ${iteration}`);
    if (plot.dataset.drawn) draw(plot);
  });
}
function drawNext() {
  const element = plots.find((plot) => !plot.dataset.drawn);
  if (element) {
    draw(element);
    setTimeout(drawNext); // between two panels the page answers clicks
  }
}
addEventListener("DOMContentLoaded", () => setTimeout(drawNext)); // Plotly is read after the table answers clicks
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  plots.filter((element) => element.dataset.drawn).forEach(draw);
});
addEventListener("beforeprint", () => plots.forEach(draw));

// Questions. All text of a run goes into the page as text, never as HTML.
const questions = JSON.parse(document.getElementById("questions").textContent);
const table = document.getElementById("questions-table");
const PAGE = 100;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const inPercent = (share) => `${(100 * share).toFixed(0)}%`;
const inPoints = (difference) => `${difference < 0 ? "−" : difference > 0 ? "+" : ""}${Math.abs(100 * difference).toFixed(0)}`;
const COLUMNS = [
  { title: "question", value: (row) => row.text, numeric: false },
  { title: "set", value: (row) => row.question_set, numeric: false },
  { title: "what became of it", value: (row) => row.label, numeric: false },
  { title: "start", value: (row) => row.start, numeric: true },
  { title: "end", value: (row) => row.end, numeric: true },
  { title: "change", value: (row) => row.end - row.start, numeric: true },
  { title: "course", value: null },
  { title: "largest vote at the end", value: (row) => row.vote_share, numeric: true },
  ...(questions.some((row) => row.critic_value !== null) ? [{ title: "critic's mean value", value: (row) => row.critic_value, numeric: true }] : []),
];
const view = { column: null, descending: false, shown: PAGE };

function spark(shares) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 90 24");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", shares.map(([iteration, share]) => `iteration ${iteration}: ${inPercent(share)}`).join(", "));
  const first = shares[0][0], width = shares[shares.length - 1][0] - first || 1;
  const points = shares.map(([iteration, share]) => [3 + 84 * (iteration - first) / width, 21 - 18 * share]);
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  const end = document.createElementNS(space, "circle");
  [["cx", points.at(-1)[0]], ["cy", points.at(-1)[1]], ["r", 2.2]].forEach(([name, value]) => end.setAttribute(name, value));
  svg.append(line, end);
  return svg;
}

function sampleElement(sample) {
  const verdict = sample.correct === null ? "not graded" : sample.correct ? "right" : "wrong";
  const element = make("article", `sample ${verdict}`);
  const header = make("header");
  header.append(make("b", "", sample.count > 1 ? `${sample.count} × ${verdict}` : verdict), ` · ${sample.tokens} tokens${sample.truncated ? ", cut at the limit" : ""}`);
  if (sample.answer && sample.answer.trim() !== sample.text.trim()) {
    header.append(" · answer: ", make("bdi", "", sample.answer));
  }
  const text = make("div", "text", sample.text || "(empty)");
  text.dir = "auto";
  element.append(header, text);
  return element;
}

function details(row) {
  const line = make("tr", "details");
  const cell = make("td");
  cell.colSpan = COLUMNS.length;
  const whole = make("p", "whole", row.text);
  whole.dir = "auto";
  cell.append(whole);
  if (row.answer) {
    const answer = make("p", "", "Hidden answer: ");
    answer.append(make("bdi", "", row.answer));
    cell.append(answer);
  }
  const columns = make("div", "samples");
  for (const [title, samples] of Object.entries(row.samples)) {
    const column = make("div");
    const count = (some) => some.reduce((sum, sample) => sum + sample.count, 0);
    const right = count(samples.filter((sample) => sample.correct));
    column.append(make("h4", "", `${title}: ${right} of ${count(samples)} right`), ...samples.map(sampleElement));
    columns.append(column);
  }
  cell.append(columns);
  line.append(cell);
  return line;
}

function rowElement(row) {
  const line = make("tr", "question-row");
  const cell = make("td", "question-text");
  const button = make("button", "", row.text);
  button.type = "button";
  button.dir = "auto";
  button.setAttribute("aria-expanded", "false");
  cell.append(button);
  const difference = row.end - row.start;
  const course = make("td");
  course.append(spark(row.shares));
  line.append(
    cell, make("td", "", row.question_set), make("td", { gained: "better", lost: "worse" }[row.label] || "", row.label),
    make("td", "", inPercent(row.start)), make("td", "", inPercent(row.end)),
    make("td", difference > 0 ? "better" : difference < 0 ? "worse" : "", inPoints(difference)), course, make("td", "", row.votes),
  );
  if (COLUMNS.length > 8) line.append(make("td", "", row.critic_value === null ? "–" : row.critic_value.toFixed(2)));
  line.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) line.nextElementSibling.remove();
    else line.after(details(row));
  });
  return line;
}

function showQuestions() {
  const set = document.getElementById("filter-set").value, label = document.getElementById("filter-label").value;
  const text = document.getElementById("filter-text").value.toLowerCase();
  const rows = questions.filter((row) => (!set || row.question_set === set) && (!label || row.label === label)
    && (!text || row.text.toLowerCase().includes(text) || row.id.toLowerCase().includes(text)));
  if (view.column !== null) {
    const { value, numeric } = COLUMNS[view.column];
    const sign = view.descending ? -1 : 1;
    const known = (row) => Number(value(row) === null); // rows without the figure come last, whatever the direction
    rows.sort((a, b) => known(a) - known(b) || sign * (numeric ? value(a) - value(b) : value(a).localeCompare(value(b))));
  }
  table.tBodies[0].replaceChildren(...rows.slice(0, view.shown).map(rowElement));
  document.getElementById("question-count").textContent = `${rows.length} of ${questions.length} questions`;
  document.getElementById("more").hidden = rows.length <= view.shown;
}

if (table) {
  const heads = COLUMNS.map((column, index) => {
    const head = make("th");
    if (!column.value) {
      head.textContent = column.title;
      return head;
    }
    const button = make("button", "", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      view.descending = view.column === index ? !view.descending : column.numeric;
      view.column = index;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
      showQuestions();
    });
    head.append(button);
    return head;
  });
  table.tHead.rows[0].append(...heads);
  for (const [id, key] of [["filter-set", "question_set"], ["filter-label", "label"]]) {
    const select = document.getElementById(id);
    for (const value of [...new Set(questions.map((row) => row[key]))].sort()) {
      const option = make("option", "", value);
      option.value = value;
      select.append(option);
    }
    select.addEventListener("change", () => { view.shown = PAGE; showQuestions(); });
  }
  document.getElementById("filter-text").addEventListener("input", () => { view.shown = PAGE; showQuestions(); });
  document.getElementById("more").addEventListener("click", () => { view.shown += PAGE; showQuestions(); });
  showQuestions();
}

// The fork/join tree as lanes on an axis of tokens: one lane a thread, a segment from its start to its finish.

const SVG = "http://www.w3.org/2000/svg";
const LANE = 24;
const BOX = 14;
const AXIS = 22;
const PAD = 14;

function draw(tag, attributes, ...inside) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
}

/** Threads of a trajectory by name, the root first and nested ones below their parents. */
function lanesOf(data, i) {
  const [first, end] = segmentsOf(data, i);
  const found = new Map();
  for (let s = first; s < end; s++) if (!found.has(data.thread[s])) found.set(data.thread[s], s);
  const lanes = [...found].map(([thread, segment]) => ({ thread, segment, name: data.names[thread] }));
  lanes.sort((a, b) => {
    const k = a.name.findIndex((part, at) => part !== b.name[at]);
    return k < 0 ? a.name.length - b.name.length : (a.name[k] ?? -1) - (b.name[k] ?? -1);
  });
  return lanes;
}

/** A step of 1, 2 or 5 times a power of ten that puts about `count` ticks on the axis. */
function tickStep(length, count) {
  const rough = Math.max(1, length / count);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((k) => k * power).find((step) => step >= rough);
}

function drawLanes(data, i, width) {
  const [first, end] = segmentsOf(data, i);
  const lanes = lanesOf(data, i);
  const place = new Map(lanes.map((lane, at) => [lane.thread, at]));
  const length = Math.max(1, data.l_critical[i]);
  const x = (tokens) => PAD + (tokens / length) * (width - 2 * PAD - 14);
  const y = (segment) => AXIS + place.get(data.thread[segment]) * LANE + LANE / 2;
  const height = AXIS + lanes.length * LANE + 6;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${lanes.length} lanes, ${data.l_critical[i]} tokens long` });
  svg.append(hatch(), axis(length, data.l_critical[i], x, height, width));
  const lines = draw("g", { class: "lines" });
  const boxes = draw("g", {});
  for (let s = first; s < end; s++) {
    for (let p = data.first_parent[s]; p < data.first_parent[s + 1]; p++) {
      const parent = first + data.parents[p];
      if (data.thread[parent] !== data.thread[s]) lines.append(connection(data, parent, s, x, y));
    }
    boxes.append(box(data, s, x, y));
  }
  svg.append(lines, boxes, criticalLine(data, first, end, x, y));
  return { svg, lanes };
}

/** From where the parent ended, along its lane for as long as it waits, then over to the lane of what it started. */
function connection(data, parent, segment, x, y) {
  const [from, to] = [x(finishOf(data, parent)), x(data.start[segment])];
  const d = `M${from} ${y(parent)}H${to}V${y(segment)}`;
  return draw("path", { d, class: from < to ? "waits" : "forks" });
}

function box(data, segment, x, y) {
  const [from, to] = [x(data.start[segment]), x(finishOf(data, segment))];
  const origin = originOf(data, segment);
  const attributes = { class: `box ${origin}${isCritical(data, segment) ? " critical" : ""}`, tabindex: 0, role: "button" };
  const shape = origin === "prompt" ? { x: from - 6, width: 5 } : { x: from, width: Math.max(1, to - from - 0.5) };
  const node = draw("rect", { ...attributes, ...shape, y: y(segment) - BOX / 2, height: BOX, rx: 2 });
  node.setAttribute("aria-label", `${laneName(data, segment)}, ${origin}, ${tokensIn(data, segment)} tokens`);
  node.dataset.segment = segment;
  node.dataset.start = data.start[segment];
  node.dataset.finish = finishOf(data, segment);
  return node;
}

function criticalLine(data, first, end, x, y) {
  let d = "";
  for (let s = first; s < end; s++) {
    if (!isCritical(data, s)) continue;
    const low = y(s) + BOX / 2 + 2;
    d += `${d ? "L" : "M"}${x(data.start[s])} ${low}L${x(finishOf(data, s))} ${low}`;
  }
  return draw("path", { d: d || "M0 0", class: "critical-line" });
}

function axis(length, lCritical, x, height, width) {
  const group = draw("g", { class: "axis" });
  const step = tickStep(length, width / 80);
  for (let at = 0; at <= length; at += step) {
    group.append(draw("line", { x1: x(at), x2: x(at), y1: AXIS - 5, y2: height }));
    if (at && x(length) - x(at) < 10 + 10 * String(length).length) continue;  // the end has a label of its own
    group.append(draw("text", { x: x(at), y: AXIS - 9, "text-anchor": "middle" }, String(at)));
  }
  group.append(draw("line", { class: "end", x1: x(lCritical), x2: x(lCritical), y1: AXIS - 5, y2: height }));
  group.append(draw("text", { class: "end", x: Math.min(x(lCritical), width - 4), y: AXIS - 9, "text-anchor": "end" }, String(lCritical)));
  return group;
}

/** Forced segments are hatched, so that no colour has to be told from another. */
function hatch() {
  const pattern = draw("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(draw("rect", { class: "hatch-ground", width: 5, height: 5 }), draw("rect", { class: "hatch-line", width: 2, height: 5 }));
  return draw("defs", {}, pattern);
}

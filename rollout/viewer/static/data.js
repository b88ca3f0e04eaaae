// Opens the compressed columns, and answers what is asked of one trajectory, segment or token.

const KINDS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, f4: Float32Array, f8: Float64Array,
};
const NO_LOGPROB = -32768;
const CRITICAL = 4;

/** The columns by their names, beside what the header holds: texts, names, pieces, ids, notes, terms. */
async function openData(base64) {
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  for (const [name, [kind, place, count]] of Object.entries(data.columns)) {
    data[name] = new KINDS[kind](buffer, 4 + length + place, count);
  }
  data.count = data.step.length;
  data.depthOf = (segment) => Math.floor(data.names[data.thread[segment]].length / 2);
  return data;
}

const originOf = (data, segment) => data.origins[data.origin[segment] & 3];
const isCritical = (data, segment) => (data.origin[segment] & CRITICAL) !== 0;
const tokensIn = (data, segment) => data.first_token[segment + 1] - data.first_token[segment];
/** Where a segment ends on the axis of tokens; a prompt has no length there. */
const finishOf = (data, segment) =>
  data.start[segment] + (originOf(data, segment) === "prompt" ? 0 : tokensIn(data, segment));
const etaOf = (data, i) => (data.l_total[i] ? 1 - data.l_critical[i] / data.l_total[i] : 0);
const verdictOf = (data, i) => data.texts[data.verdict[i]];
const problemOf = (data, i) => data.texts[data.problem[i]];
const outcomeOf = (data, i) => data.outcomes[data.outcome[i]];

/** [first, one past the last] segment of a trajectory. */
const segmentsOf = (data, i) => [data.first_segment[i], data.first_segment[i + 1]];

function textOf(data, segment, longest = Infinity) {
  const found = [];
  const end = Math.min(data.first_token[segment + 1], data.first_token[segment] + longest);
  for (let t = data.first_token[segment]; t < end; t++) found.push(data.pieces[data.token[t]]);
  if (end < data.first_token[segment + 1]) found.push(" …");
  return found.join("");
}

function laneName(data, segment) {
  const name = data.names[data.thread[segment]];
  const parts = [];
  for (let k = 0; k + 1 < name.length; k += 2) parts.push(`${name[k] + 1}.${name[k + 1]}`);
  return parts.length ? `thread ${parts.join(" / ")}` : "root";
}

/** Nats of a token, or null where it was not sampled. */
const logprobOf = (data, token) => (data.logprob[token] === NO_LOGPROB ? null : data.logprob[token] / 1000);

function meanLogprob(data, segment) {
  let sum = 0;
  let count = 0;
  for (let t = data.first_token[segment]; t < data.first_token[segment + 1]; t++) {
    const value = logprobOf(data, t);
    if (value !== null) { sum += value; count++; }
  }
  return count ? sum / count : null;
}

/** Mean |trainer's - sampler's| log-prob over a trajectory, or null where none was recorded. */
function gapOf(data, i) {
  if (!data.gap) return null;
  const [first, end] = segmentsOf(data, i);
  let sum = 0;
  let count = 0;
  for (let t = data.first_token[first]; t < data.first_token[end]; t++) {
    if (!Number.isNaN(data.gap[t])) { sum += Math.abs(data.gap[t]); count++; }
  }
  return count ? sum / count : null;
}

// -- words and nodes

const MARKS = { correct: "✓", wrong: "✗", unparsable: "?", timeout: "…", error: "!" };

const figure = (value, digits = 2) =>
  value === null || Number.isNaN(value) ? "–" : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1");

/** An element; strings become text nodes, never markup. */
function make(tag, className, ...inside) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...inside.map((each) => (typeof each === "number" ? String(each) : each)));
  return node;
}

// The text of a trajectory in reading order, coloured by origin or by how likely the policy found each token.

const SHADES = 7;
const LEAST_LIKELY = 5;  // nats at which the heat is full
const WIDEST_GAP = 1e-2;  // nats

/** Turns: runs of neighbouring segments of one thread, in reading order. */
function turnsOf(data, i) {
  const [first, end] = segmentsOf(data, i);
  const turns = [];
  for (let k = first; k < end; k++) {
    const segment = first + data.order[k];
    const last = turns.at(-1);
    if (last && data.thread[last[0]] === data.thread[segment]) last.push(segment);
    else turns.push([segment]);
  }
  return turns;
}

function textTurn(data, segments, heat) {
  const [first, last] = [segments[0], segments.at(-1)];
  const critical = segments.some((s) => isCritical(data, s) && finishOf(data, s) > data.start[s]);
  const head = make("header", "", make("b", "", laneName(data, first)), ` tokens ${data.start[first]}–${finishOf(data, last)}`);
  if (critical) head.append(make("em", "", "critical"));
  const events = segments.map((s) => data.event[s]).filter(Boolean).map((event) => data.events[event - 1]);
  if (events.length) head.append(` ends: ${events.join(", ")}`);
  const text = make("div", "text");
  for (const segment of segments) text.append(textSegment(data, segment, heat));
  const turn = make("section", critical ? "turn critical" : "turn", head, text);
  turn.style.marginInlineStart = `${Math.min(data.depthOf(first), 8) * 18}px`;
  return turn;
}

function textSegment(data, segment, heat) {
  const span = make("span", `segment ${originOf(data, segment)}`);
  span.dataset.segment = segment;
  if (heat === "none") span.textContent = textOf(data, segment);
  else for (let t = data.first_token[segment]; t < data.first_token[segment + 1]; t++) span.append(textToken(data, t, heat));
  return span;
}

function textToken(data, token, heat) {
  const value = heat === "gap" ? data.gap[token] : logprobOf(data, token);
  const known = value !== null && !Number.isNaN(value);
  const share = Math.min(1, Math.abs(value) / (heat === "gap" ? WIDEST_GAP : LEAST_LIKELY));
  const node = make("i", known ? `heat${Math.round(share * SHADES)}` : "", data.pieces[data.token[token]]);
  node.token = token;
  return node;
}

/** One line about a token. */
function tokenLine(data, token) {
  const value = logprobOf(data, token);
  const said = [`token ${data.ids[data.token[token]]} ${JSON.stringify(data.pieces[data.token[token]])}`];
  said.push(value === null ? "not sampled" : `log-prob ${value.toFixed(3)}, p ${Math.exp(value).toPrecision(3)}`);
  if (data.gap && !Number.isNaN(data.gap[token])) said.push(`trainer − sampler ${data.gap[token].toExponential(1)}`);
  return said.join(" · ");
}

/** One line about a segment. */
function segmentLine(data, segment) {
  const mean = meanLogprob(data, segment);
  const said = [laneName(data, segment), originOf(data, segment), `${tokensIn(data, segment)} tokens`];
  said.push(`${data.start[segment]}–${finishOf(data, segment)}`);
  if (data.event[segment]) said.push(`ends: ${data.events[data.event[segment] - 1]}`);
  if (mean !== null) said.push(`mean log-prob ${mean.toFixed(3)}`);
  if (isCritical(data, segment)) said.push("on the critical path");
  return said.join(" · ");
}

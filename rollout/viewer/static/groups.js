// Which rollouts belong together, which are wanted, and in what order they stand.

/** Groups: the rollouts of one step and one problem. `members` are ranked, the best first. */
function groupsOf(data) {
  const number = new Map();
  const groupOf = new Uint32Array(data.count);
  const members = [];
  for (let i = 0; i < data.count; i++) {
    const key = `${data.step[i]} ${data.problem[i]}`;
    if (!number.has(key)) { number.set(key, members.length); members.push([]); }
    groupOf[i] = number.get(key);
    members[groupOf[i]].push(i);
  }
  for (const each of members) each.sort((a, b) => byWorth(data, a, b));
  return { groupOf, members };
}

/** The better one first: by reward, then the shorter critical path. What was not judged comes last. */
function byWorth(data, a, b) {
  const [x, y] = [data.reward[a], data.reward[b]];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
  return y - x || data.l_critical[a] - data.l_critical[b] || a - b;
}

const SORTS = {
  step: { label: "step", title: "training step", of: (d, i) => d.step[i] },
  problem: { label: "problem", title: "problem id", of: (d, i) => problemOf(d, i) },
  verdict: { label: "verdict", title: "verdict, and the outcome where it is not an answer", of: (d, i) => verdictOf(d, i) },
  reward: { label: "reward", title: "reward", of: (d, i) => d.reward[i] },
  advantage: { label: "adv.", title: "advantage of the root", of: (d, i) => d.advantage[i] },
  eta: { label: "eta", title: "1 - L_critical / L_total", of: (d, i) => etaOf(d, i) },
  l_critical: { label: "L_crit.", title: "L_critical, tokens", of: (d, i) => d.l_critical[i] },
  threads: { label: "thr.", title: "threads", of: (d, i) => d.threads[i] },
};

function comparator(data, { key, down }) {
  const of = SORTS[key].of;
  const values = Array.from({ length: data.count }, (_, i) => of(data, i));
  const sign = down ? -1 : 1;
  return (a, b) => {
    const [x, y] = [values[a], values[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;  // always last
    return x < y ? -sign : x > y ? sign : byWorth(data, a, b);
  };
}

function wanted(data, filter) {
  const needle = filter.search.toLowerCase();
  const matches = data.texts.map((text) => !needle || text.toLowerCase().includes(needle));
  const within = (value, [least, most]) => (least === null || value >= least) && (most === null || value <= most);
  const found = [];
  for (let i = 0; i < data.count; i++) {
    const verdict = verdictOf(data, i);
    if (!matches[data.problem[i]]) continue;
    if (filter.verdict && (filter.verdict === "not correct" ? verdict === "correct" : verdict !== filter.verdict)) continue;
    if (filter.outcome && outcomeOf(data, i) !== filter.outcome) continue;
    if (!within(etaOf(data, i), filter.eta) || !within(data.threads[i], filter.threads)) continue;
    if (!within(data.step[i], filter.step)) continue;
    found.push(i);
  }
  return found;
}

/** What the list shows, top to bottom: a rollout's number, or -1 - group where a group begins. */
function rowsOf(data, groups, filter, sort, grouped) {
  const compare = comparator(data, sort);
  const found = wanted(data, filter).sort(compare);
  if (!grouped) return { rows: found, shown: found.length };
  const order = new Map();  // a group stands where its first rollout would
  for (const i of found) {
    const group = groups.groupOf[i];
    if (!order.has(group)) order.set(group, []);
    order.get(group).push(i);
  }
  const rows = [];
  for (const [group, members] of order) {
    rows.push(-1 - group);
    for (const i of members) rows.push(i);
  }
  return { rows, shown: found.length };
}

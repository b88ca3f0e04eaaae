// Starts the page: filters, sorting, keys.

const KEYS = [
  ["j  ↓", "next rollout"], ["k  ↑", "rollout before"], ["PageDown  PageUp", "twenty further, twenty back"],
  ["Home  End", "first, last"], ["b", "best of the group"], ["w", "worst of the group"],
  ["n  p", "next group, group before"], ["/", "search a problem"], ["Esc", "leave the search"],
  ["g", "groups on or off"], ["h", "colour by origin or log-prob"], ["c", "clear the filters"], ["?", "this help"],
];
const RANGES = ["eta", "threads", "step"];
const at = (id) => document.getElementById(id);

function start(data) {
  const groups = groupsOf(data);
  const state = { sort: { key: "step", down: false }, chosen: -1, rows: [] };
  const list = new List(data, groups, { choose, best });
  const detail = new Detail(data, groups, { choose, best });

  function choose(i) {
    if (i === null) return;
    state.chosen = i;
    list.select(i);
    detail.show(i, !list.place.has(i));
  }

  function best(group, worst) {
    choose(groups.members[group].at(worst ? -1 : 0));
  }

  function refresh() {
    const { rows, shown } = rowsOf(data, groups, filterNow(), state.sort, at("grouped").checked);
    list.show(rows, at("grouped").checked);
    at("count").textContent = `${shown.toLocaleString("en")} of ${data.count.toLocaleString("en")}`;
    if (state.chosen < 0 || !list.place.has(state.chosen)) choose(list.end(false));
    else list.select(state.chosen);
    if (!rows.length) detail.show((state.chosen = -1));
  }

  function nextGroup(by) {
    const own = list.place.get(state.chosen) ?? 0;
    const group = groups.groupOf[state.chosen];
    for (let k = own; k >= 0 && k < list.rows.length; k += by) {
      const row = list.rows[k];
      if (row >= 0 && groups.groupOf[row] !== group) { best(groups.groupOf[row], false); return; }
    }
  }

  const actions = {
    j: () => choose(list.neighbour(1)), ArrowDown: () => choose(list.neighbour(1)),
    k: () => choose(list.neighbour(-1)), ArrowUp: () => choose(list.neighbour(-1)),
    PageDown: () => choose(list.neighbour(20)), PageUp: () => choose(list.neighbour(-20)),
    Home: () => choose(list.end(false)), End: () => choose(list.end(true)),
    b: () => state.chosen >= 0 && best(groups.groupOf[state.chosen], false),
    w: () => state.chosen >= 0 && best(groups.groupOf[state.chosen], true),
    n: () => nextGroup(1), p: () => nextGroup(-1),
    "/": () => at("search").focus(),
    g: () => { at("grouped").checked = !at("grouped").checked; refresh(); },
    h: () => detail.setHeat(detail.heat === "none" ? "logprob" : "none"),
    c: clear,
    "?": () => at("help").showModal(),
  };

  function clear() {
    for (const id of ["search", "verdict", "outcome", ...RANGES.flatMap((name) => [`${name}-min`, `${name}-max`])]) at(id).value = "";
    refresh();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
    if (/^(INPUT|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox") {
      if (event.key === "Escape" || (event.key === "Enter" && event.target === at("search"))) at("list").focus();
      return;
    }
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  fillControls(data, groups, state, refresh);
  at("clear").addEventListener("click", clear);
  at("help-button").addEventListener("click", actions["?"]);
  refresh();
  at("list").focus({ preventScroll: true });
}

function filterNow() {
  const number = (id) => (at(id).value === "" ? null : Number(at(id).value));
  const ranges = RANGES.map((name) => [name, [number(`${name}-min`), number(`${name}-max`)]]);
  return { search: at("search").value, verdict: at("verdict").value, outcome: at("outcome").value, ...Object.fromEntries(ranges) };
}

function fillControls(data, groups, state, refresh) {
  const verdicts = new Set(Array.from(data.verdict, (number) => data.texts[number]));
  const outcomes = new Set(Array.from(data.outcome, (number) => data.outcomes[number]));
  at("verdict").append(new Option("any", ""), ...["correct", "not correct"].map((word) => new Option(word)));
  at("verdict").append(...[...verdicts].filter((word) => word !== "correct").map((word) => new Option(word)));
  at("outcome").append(new Option("any", ""), ...[...outcomes].map((word) => new Option(word)));
  for (const [key, { label, title }] of Object.entries(SORTS)) {
    const head = make("button", key, label);
    head.type = "button";
    head.title = `sort by ${title}`;
    head.addEventListener("click", () => {
      state.sort = { key, down: state.sort.key === key ? !state.sort.down : ["reward", "advantage", "eta"].includes(key) };
      markSort();
      refresh();
    });
    at("heads").append(head);
    if (key === "problem") at("heads").append(make("span", "time", "critical of total"));
  }
  const markSort = () => {
    for (const key of Object.keys(SORTS)) {
      const own = state.sort.key === key;
      const head = at("heads").querySelector(`.${key}`);
      head.textContent = SORTS[key].label + (own ? (state.sort.down ? " ▾" : " ▴") : "");
      head.setAttribute("aria-pressed", own);
    }
  };
  markSort();
  for (const control of at("bar").querySelectorAll("input, select")) control.addEventListener("input", refresh);
  at("grouped").checked = groups.members.some((members) => members.length > 1);
  at("keys").append(...KEYS.flatMap(([keys, what]) => [make("dt", "", ...keys.split("  ").map((key) => make("kbd", "", key))), make("dd", "", what)]));
}

openData(at("data").textContent).then(start).then(
  () => { performance.mark("rollouts-shown"); document.documentElement.dataset.ready = "yes"; },
  (error) => {
    at("problem-with-page").hidden = false;
    at("problem-with-page").textContent = `The rollouts cannot be shown (${error}). A browser of 2023 or later is needed.`;
    throw error;
  },
);

// The list: only the rows that can be seen exist, and a row that scrolls out is written over with one that scrolls in.

const ROW = 26;
const SPARE = 8;

class List {
  /** `choose(rollout)` when one is clicked; `best(group, worst)` for a group's two buttons. */
  constructor(data, groups, { choose, best }) {
    Object.assign(this, { data, groups, choose, best, rows: [], place: new Map(), chosen: -1, drawn: 0 });
    this.port = document.getElementById("list");
    this.space = document.getElementById("space");
    this.longest = data.l_total.reduce((a, b) => Math.max(a, b), 1);
    this.pool = [];
    this.port.addEventListener("scroll", () => this.later(), { passive: true });
    this.port.addEventListener("click", (event) => this.clicked(event));
    new ResizeObserver(() => this.later()).observe(this.port);
  }

  show(rows, grouped) {
    this.rows = rows;
    this.place = new Map(rows.map((row, at) => [row, at]));
    this.port.classList.toggle("grouped", grouped);
    document.getElementById("heads").classList.toggle("grouped", grouped);
    this.space.style.height = `${rows.length * ROW}px`;
    for (const node of this.pool) node.at = -1;
    this.draw();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
  }

  draw() {
    const room = Math.ceil(this.port.clientHeight / ROW) + 2 * SPARE;
    if (this.pool.length < room) {
      while (this.pool.length < room) this.pool.push(this.space.appendChild(this.node()));
      for (const node of this.pool) node.at = -1;  // which node a row has depends on how many there are
    }
    const first = Math.max(0, Math.floor(this.port.scrollTop / ROW) - SPARE);
    for (let at = first; at < first + this.pool.length; at++) {
      const node = this.pool[at % this.pool.length];
      if (node.at !== at) this.write(node, at);
    }
  }

  node() {
    const node = make("div", "row");
    node.at = -1;
    node.setAttribute("role", "option");
    node.cells = {};
    for (const key of Object.keys(SORTS)) node.append((node.cells[key] = make("span", key)));
    node.bar = make("span", "time", make("i", "total"), make("i", "critical"));
    node.cells.problem.after(node.bar);
    node.head = make("span", "head");
    node.buttons = ["best", "worst"].map((word) => {
      const button = make("button", word, word);
      button.type = "button";
      button.tabIndex = -1;
      return button;
    });
    node.append(node.head, ...node.buttons);
    return node;
  }

  write(node, at) {
    node.at = at;
    const row = this.rows[at];
    node.hidden = row === undefined;
    if (node.hidden) return;
    node.style.transform = `translateY(${at * ROW}px)`;
    node.id = `row${at}`;
    node.row = row;
    node.className = row < 0 ? "row group" : "row";
    node.setAttribute("aria-setsize", this.rows.length);
    node.setAttribute("aria-posinset", at + 1);
    if (row < 0) this.writeGroup(node, -1 - row);
    else this.writeRollout(node, row);
  }

  writeGroup(node, group) {
    const { data } = this;
    const members = this.groups.members[group];
    const right = members.filter((i) => verdictOf(data, i) === "correct").length;
    const rewards = members.map((i) => data.reward[i]).filter((value) => !Number.isNaN(value));
    const mean = rewards.length ? rewards.reduce((a, b) => a + b) / rewards.length : null;
    node.head.textContent = `step ${data.step[members[0]]} · ${problemOf(data, members[0])} · ${right} of ${members.length} right · mean ${figure(mean)}`;
    node.setAttribute("aria-selected", "false");
  }

  writeRollout(node, i) {
    const { data, longest } = this;
    const { cells } = node;
    const verdict = verdictOf(data, i);
    const outcome = outcomeOf(data, i);
    cells.step.textContent = data.step[i];
    cells.problem.textContent = cells.problem.title = problemOf(data, i);
    // What never came to an answer says why instead; the title has both.
    const ending = { answered: verdict, forced_answer: `${verdict}, forced` }[outcome] ?? outcome;
    cells.verdict.textContent = `${MARKS[verdict] ?? ""} ${ending}`;
    cells.verdict.title = `${verdict}, ${outcome}`;
    cells.verdict.dataset.verdict = verdict;
    cells.reward.textContent = figure(data.reward[i]);
    cells.advantage.textContent = figure(data.advantage[i]);
    cells.eta.textContent = figure(etaOf(data, i));
    cells.l_critical.textContent = data.l_critical[i];
    cells.threads.textContent = data.threads[i];
    node.bar.firstChild.style.width = `${(100 * data.l_total[i]) / longest}%`;
    node.bar.lastChild.style.width = `${(100 * data.l_critical[i]) / longest}%`;
    node.bar.title = `${data.l_critical[i]} critical of ${data.l_total[i]} tokens`;
    this.mark(node);
  }

  mark(node) {
    const own = node.row === this.chosen;
    node.classList.toggle("chosen", own);
    node.setAttribute("aria-selected", own);
  }

  /** Marks a rollout and scrolls to it, where it is among the rows. */
  select(i) {
    this.chosen = i;
    const at = this.place.get(i);
    if (at === undefined) this.port.removeAttribute("aria-activedescendant");
    else {
      const around = Math.min(4 * ROW, Math.max(0, this.port.clientHeight / 2 - ROW));  // rows to see beside it
      const [above, below] = [at * ROW - around, (at + 1) * ROW + around];
      if (above < this.port.scrollTop) this.port.scrollTop = above;
      if (below > this.port.scrollTop + this.port.clientHeight) this.port.scrollTop = below - this.port.clientHeight;
      this.draw();
      this.port.setAttribute("aria-activedescendant", `row${at}`);
    }
    for (const node of this.pool) if (node.row >= 0) this.mark(node);
  }

  /** The rollout `by` rows further, heads of groups not counted; the nearest end where there are no more. */
  neighbour(by) {
    const sign = Math.sign(by);
    let at = this.place.get(this.chosen);
    if (at === undefined) at = sign > 0 ? -1 : this.rows.length;
    let found = null;
    for (let left = Math.abs(by); left > 0; ) {
      at += sign;
      if (at < 0 || at >= this.rows.length) break;
      if (this.rows[at] >= 0) { found = this.rows[at]; left--; }
    }
    return found;
  }

  end(last) {
    const found = last ? this.rows.findLast((row) => row >= 0) : this.rows.find((row) => row >= 0);
    return found ?? null;
  }

  clicked(event) {
    const node = event.target.closest(".row");
    if (!node) return;
    const button = event.target.closest("button");
    if (node.row < 0) this.best(-1 - node.row, button?.className === "worst");
    else this.choose(node.row);
  }
}

// The right side: figures, reward terms, group, lanes and text of the chosen rollout, made when it is chosen.

class Detail {
  constructor(data, groups, { choose, best }) {
    Object.assign(this, { data, groups, choose, best, heat: "none", chosen: -1 });
    this.port = document.getElementById("right");
    this.node = document.getElementById("detail");
    this.tip = document.getElementById("tip");
    this.said = document.getElementById("said");
    for (const kind of ["pointerover", "focusin"]) this.node.addEventListener(kind, (event) => this.over(event));
    for (const kind of ["pointerleave", "focusout"]) this.node.addEventListener(kind, () => this.hush());
    this.node.addEventListener("click", (event) => this.picked(event));
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.picked(event);
    });
    new ResizeObserver(() => this.redrawLanes()).observe(this.port);
  }

  show(i, hidden) {
    this.chosen = i;
    this.node.dataset.rollout = i;
    this.hush();
    if (i < 0) {
      this.node.replaceChildren(make("p", "empty", "No rollout is chosen."));
      return;
    }
    this.lanes = make("div", "lanes");
    this.text = make("div", "texts");
    this.node.replaceChildren(...this.top(i, hidden), this.lanes, this.legend(), this.text);
    this.port.scrollTop = 0;
    this.width = 0;
    this.redrawLanes();
    this.rewriteText();
  }

  top(i, hidden) {
    const { data } = this;
    const verdict = verdictOf(data, i);
    const chip = make("span", "verdict", `${MARKS[verdict] ?? ""} ${verdict}`);
    chip.dataset.verdict = verdict;
    const head = make("h2", "", make("span", "problem", problemOf(data, i)), chip);
    if (hidden) head.append(make("small", "", "not among the filtered rows"));
    return [head, this.group(i), this.facts(i), this.terms(i)];
  }

  group(i) {
    const { data } = this;
    const members = this.groups.members[this.groups.groupOf[i]];
    const strip = make("div", "members", `step ${data.step[i]}, ${members.length} rollout${members.length > 1 ? "s, best first" : ""}:`);
    members.forEach((member) => {
      const chip = make("button", "chip", `${MARKS[verdictOf(data, member)] ?? ""} ${figure(data.reward[member])}`);
      chip.type = "button";
      chip.dataset.verdict = verdictOf(data, member);
      chip.title = `reward ${figure(data.reward[member], 4)}, L_critical ${data.l_critical[member]}`;
      if (member === i) chip.setAttribute("aria-current", "true");
      chip.addEventListener("click", () => this.choose(member));
      strip.append(chip);
    });
    for (const [word, worst, key] of [["best", false, "b"], ["worst", true, "w"]]) {
      const button = make("button", word, word, make("kbd", "", key));
      button.type = "button";
      button.addEventListener("click", () => this.best(this.groups.groupOf[i], worst));
      strip.append(button);
    }
    return strip;
  }

  facts(i) {
    const { data } = this;
    const gap = gapOf(data, i);
    const facts = Object.entries({
      L_critical: data.l_critical[i], L_total: data.l_total[i], eta: figure(etaOf(data, i), 3),
      "total / critical": data.l_critical[i] ? `${figure(data.l_total[i] / data.l_critical[i])}×` : "–",
      threads: data.threads[i], blocks: data.blocks[i], "width, depth": `${data.width[i]}, ${data.depth[i]}`,
      reward: figure(data.reward[i], 4), advantage: figure(data.advantage[i], 4), outcome: outcomeOf(data, i),
      dialect: data.texts[data.dialect[i]], attention: data.attentions[data.attention[i]], weights: `version ${data.version[i]}`,
      "trainer gap": gap === null ? "not recorded" : `${gap.toExponential(1)} nats`,
      flaw: data.texts[data.flaw[i]] || "none",
    });
    const list = make("dl", "facts");
    for (const [name, value] of [...facts, ...(data.notes[i] ?? [])]) {
      const pair = make("div", "", make("dt", "", name), make("dd", "", String(value)));
      pair.dataset.fact = name;
      list.append(pair);
    }
    return list;
  }

  terms(i) {
    const { data } = this;
    const values = data.terms.map((name, k) => [name, data[`term${k}`][i]]).filter(([, value]) => !Number.isNaN(value));
    if (!values.length) return make("p", "terms", "reward terms: not recorded");
    const most = Math.max(...values.map(([, value]) => Math.abs(value)), 1e-9);
    const list = make("div", "terms");
    for (const [name, value] of values) {
      const bar = make("i", value < 0 ? "minus" : "");
      bar.style.width = `${(Math.abs(value) / most) * 100}%`;
      list.append(make("span", "", name), make("span", "track", bar), make("span", "value", figure(value, 4)));
    }
    return list;
  }

  legend() {
    const words = { sampled: "sampled", forced: "forced", prompt: "prompt", "critical-key": "critical path" };
    const legend = make("div", "legend", ...Object.entries(words).map(([kind, word]) => make("span", `key ${kind}`, word)));
    const modes = { none: "origin", logprob: "log-prob", ...(this.data.gap ? { gap: "trainer gap" } : {}) };
    const select = make("select", "");
    select.id = "heat";
    for (const [value, word] of Object.entries(modes)) select.append(new Option(word, value, false, value === this.heat));
    select.addEventListener("change", () => this.setHeat(select.value));
    const scale = make("span", "scale", "likely ", ...Array.from({ length: SHADES + 1 }, (_, k) => make("i", `heat${k}`, " ")), make("b", "", "unlikely"));
    legend.append(make("label", "", "colour by ", select, make("kbd", "", "h")), scale);
    return legend;
  }

  setHeat(heat) {
    this.heat = heat;
    const select = document.getElementById("heat");
    if (select) select.value = heat;
    if (this.chosen >= 0) this.rewriteText();
  }

  redrawLanes() {
    if (this.chosen < 0 || !this.lanes) return;
    const width = this.lanes.clientWidth - 160;  // less the names
    if (width === this.width || width < 100) return;
    this.width = width;
    const { svg, lanes } = drawLanes(this.data, this.chosen, width);
    const names = make("div", "names");
    for (const lane of lanes) {
      const name = make("span", "", lane.name.length ? `${"  ".repeat(Math.min(lane.name.length / 2 - 1, 6))}└ ${laneName(this.data, lane.segment)}` : "root");
      name.title = name.textContent;
      names.append(name);
    }
    this.lanes.replaceChildren(names, svg);
  }

  rewriteText() {
    this.text.className = `texts ${this.heat === "none" ? "by-origin" : "by-heat"}`;
    this.node.querySelector(".legend").classList.toggle("hot", this.heat !== "none");
    this.text.replaceChildren(...turnsOf(this.data, this.chosen).map((turn) => textTurn(this.data, turn, this.heat)));
  }

  over(event) {
    const { data } = this;
    const segment = event.target.dataset?.segment ?? event.target.closest("[data-segment]")?.dataset.segment;
    if (event.target.token !== undefined) this.said.textContent = tokenLine(data, event.target.token);
    else if (segment !== undefined) this.said.textContent = segmentLine(data, Number(segment));
    this.node.querySelectorAll(".lit").forEach((node) => node.classList.remove("lit"));
    if (segment === undefined) { this.tip.hidden = true; return; }
    this.node.querySelectorAll(`[data-segment="${Number(segment)}"]`).forEach((node) => node.classList.add("lit"));
    if (event.target.tagName !== "rect") { this.tip.hidden = true; return; }
    this.tip.textContent = textOf(data, Number(segment), 160);
    this.tip.hidden = false;
    const box = event.target.getBoundingClientRect();
    this.tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - this.tip.offsetWidth - 8))}px`;
    const under = this.lanes.getBoundingClientRect().bottom + 4;  // so that no lane is hidden
    const fits = under + this.tip.offsetHeight < innerHeight;
    this.tip.style.top = `${fits ? under : Math.max(8, box.top - 8 - this.tip.offsetHeight)}px`;
  }

  hush() {
    this.tip.hidden = true;
    this.said.textContent = "";
  }

  /** A segment of the lanes leads to its text. */
  picked(event) {
    if (event.target.tagName !== "rect") return;
    this.tip.hidden = true;
    this.node.querySelectorAll(".picked").forEach((node) => node.classList.remove("picked"));
    this.node.querySelectorAll(`[data-segment="${Number(event.target.dataset.segment)}"]`).forEach((node) => node.classList.add("picked"));
    this.text.querySelector(".picked")?.scrollIntoView({ block: "center" });
  }
}

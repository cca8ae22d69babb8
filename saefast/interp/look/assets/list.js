// The list of latents: only the rows in view exist, so that a million fit.
"use strict";

saefast.list = (() => {
  const { el, number, count, percent, data } = saefast;
  const ROW = 34; // pixels, as in views.css
  const TALLEST = 8e6; // pixels that every browser can scroll
  const DEFAULTS = { q: "", regex: "", exact: "", all: "", sort: "latent", down: "", seed: "0", dead: "", explained: "", least: "", from: "", to: "" };
  const SORTS = { latent: "number", count: "count and density", max: "maximum", energy: "energy", random: "random" };
  let state = { ...DEFAULTS };
  let order = new Uint32Array(0); // rows that are listed
  let matches = null; // row -> where it matched, while something is searched for
  let chosen = -1; // place in `order` of the row with the keyboard
  let run = 0;
  let drawn = new Map(); // place in `order` -> its element, of those in view
  let view, rows, space, summary, fields, later;
  const lines = new Map(); // row -> its strongest example as an element, or null

  function build(section) {
    fields = {};
    const field = (name, properties, label) => {
      fields[name] = el("input", { ...properties, id: `list-${name}`, oninput: changed, onchange: changed });
      return el("label", { class: properties.type === "checkbox" ? "check" : "field" }, properties.type === "checkbox" ? [fields[name], label] : [label, fields[name]]);
    };
    const size = (name, hint, label) => field(name, { type: "text", inputmode: "decimal", placeholder: hint, size: 6 }, label);
    fields.sort = el("select", { id: "list-sort", onchange: changed });
    fields.dead = el("select", { id: "list-dead", onchange: changed }, ...[["", "all latents"], ["alive", "active ones"], ["dead", "dead ones"]].map(([value, text]) => el("option", { value }, text)));
    fillSorts();
    const more = el("button", { type: "button", class: "filters", "aria-expanded": "false", onclick: () => {
      const open = more.parentElement.classList.toggle("opened");
      more.setAttribute("aria-expanded", String(open));
    } }, "Filters");
    const controls = el("form", { class: "controls", "aria-label": "Sort and filter", onsubmit: (event) => event.preventDefault() },
      el("label", { class: "field" }, "sort by", fields.sort), field("down", { type: "checkbox" }, "descending"),
      el("button", { type: "button", onclick: () => update({ sort: "random", seed: String((Number(state.seed) + 1) % 1e6) }), title: "Another random order, by the next seed" }, "Shuffle"),
      more, el("div", { class: "more" }, el("label", { class: "field" }, "show", fields.dead), size("least", "0", "count at least"),
        size("from", "0", "density % from"), size("to", "100", "to"), field("explained", { type: "checkbox" }, "explained"), el("span", { class: "break" }),
        field("regex", { type: "checkbox" }, "regex"), field("exact", { type: "checkbox" }, "match case"), field("all", { type: "checkbox" }, "search all examples, not the strongest only")));
    summary = el("p", { class: "summary", role: "status" });
    const heads = [["latent", "latent"], ["count", "density"], ["max", "maximum"], ["", "count"], ["", "tokens"], ["", "explanation, or its strongest example"]];
    const head = el("div", { class: "row head", role: "row" }, heads.map(([sort, name]) =>
      el("div", { role: "columnheader", class: name.split(/\W/)[0], "aria-sort": sort ? "none" : null }, sort ? el("button", { type: "button", "data-sort": sort, onclick: () => sortBy(sort) }, name) : name)));
    space = el("div", { class: "space-of-rows", role: "presentation" });
    rows = el("div", { class: "rows", role: "rowgroup" });
    space.append(rows);
    view = el("div", { class: "scroller", role: "presentation", tabindex: "0", "aria-label": "Latents", onscroll: draw }, space);
    const table = el("div", { class: "table", role: "table", "aria-label": "Latents" }, el("div", { role: "rowgroup" }, head), view);
    section.replaceChildren(el("h1", { tabindex: "-1" }, "Latents"), about(), controls, summary, table);
    view.addEventListener("keydown", keys);
    new ResizeObserver(draw).observe(view);
  }

  function about() {
    const { head } = data;
    const sae = [head.sae.model_name, head.sae.hook_name].filter(Boolean).join(" · ");
    const text = `${count(data.n)} of ${count(head.d_sae)} latents · ${count(head.n_rows)} tokens in ${count(head.n_contexts)} contexts`;
    return el("p", { class: "about" }, sae ? [el("b", {}, sae), " · "] : [], text);
  }

  function fillSorts() {
    const names = { ...SORTS };
    for (const name of data.scoreNames) names[`score:${name}`] = `score: ${name}`;
    fields.sort.replaceChildren(...Object.entries(names).map(([value, text]) => el("option", { value }, text)));
    fields.sort.value = state.sort;
  }

  const sortBy = (sort) => update(state.sort === sort ? { down: state.down ? "" : "1" } : { sort, down: sort === "latent" ? "" : "1" });

  function changed() {
    const next = {};
    for (const [name, field] of Object.entries(fields)) next[name] = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value.trim();
    if (next.sort !== state.sort && next.sort !== "latent" && next.sort !== "random") next.down = "1";
    update(next);
  }

  // The state is in the address, so that a list can be linked to.
  function update(changes) {
    const next = { ...state, ...changes };
    const kept = Object.entries(next).filter(([key, value]) => value !== DEFAULTS[key]);
    history.replaceState(null, "", `#list${kept.length ? `?${new URLSearchParams(kept)}` : ""}`);
    apply(next);
  }

  const searching = (one) => JSON.stringify([one.q, one.regex, one.exact, one.all]);

  function apply(next) {
    const again = searching(next) !== searching(state);
    state = next;
    for (const [name, field] of Object.entries(fields)) {
      if (field.type === "checkbox") field.checked = state[name] === "1";
      else if (field !== document.activeElement) field.value = state[name];
    }
    for (const button of document.querySelectorAll("[data-sort]")) {
      const mine = button.dataset.sort === state.sort;
      button.parentElement.setAttribute("aria-sort", mine ? (state.down ? "descending" : "ascending") : "none");
    }
    if (again) search();
    list(true);
  }

  async function search() {
    const mine = ++run;
    if (!state.q) return void (matches = null);
    matches = new Map();
    matches.searched = 0;
    const id = /^#?\d+$/.test(state.q) ? data.rowOf(Number(state.q.replace("#", ""))) : undefined;
    if (id !== undefined) matches.set(id, null);
    let shown = performance.now();
    try {
      await saefast.tokens.ready();
      await saefast.search.run(state.q, { regex: state.regex === "1", exact: state.exact === "1", all: state.all === "1" }, {
        stopped: () => mine !== run,
        found: (row, where) => mine === run && !matches.has(row) && matches.set(row, where),
        progress: (searched) => {
          matches.searched = searched;
          if (performance.now() - shown > 120) list(), (shown = performance.now());
        },
      });
    } catch (error) {
      if (mine === run) matches.problem = error instanceof SyntaxError ? `not a regular expression: ${error.message}` : error.message;
    }
    if (mine === run) list(false);
  }

  function hash(value) { // saefast.storage.mix
    value = Math.imul(value ^ (value >>> 16), 0x7feb352d);
    value = Math.imul(value ^ (value >>> 15), 0x846ca68b);
    return (value ^ (value >>> 16)) >>> 0;
  }

  function keysOf() {
    const { head } = data;
    if (state.sort === "random") {
      const seed = hash(Number(state.seed) || 0);
      return Float64Array.from(head.latent, (latent) => hash(latent ^ seed));
    }
    if (state.sort.startsWith("score:")) return Float64Array.from(head.latent, (_, row) => data.bestScore(row, state.sort.slice(6)));
    return head[state.sort] ?? head.latent;
  }

  function list(top = false) {
    const { head } = data;
    const least = Number(state.least) || 0;
    const from = ((Number(state.from) || 0) / 100) * head.n_rows;
    const to = state.to === "" || Number.isNaN(Number(state.to)) ? Infinity : (Number(state.to) / 100) * head.n_rows;
    const found = [];
    const keep = (row) => {
      const n = head.count[row];
      if (n < least || n < from || n > to || (state.dead === "dead" ? n > 0 : state.dead === "alive" && n === 0)) return;
      if (state.explained && !data.explained[row]) return;
      found.push(row);
    };
    if (matches) [...matches.keys()].sort((a, b) => a - b).forEach(keep);
    else for (let row = 0; row < data.n; row++) keep(row);
    order = Uint32Array.from(found);
    if (state.sort !== "latent" || state.down) {
      const by = keysOf();
      const sign = state.down ? -1 : 1; // those without a key come last either way; of equal ones the earlier first
      order.sort((a, b) => (Number.isNaN(by[a]) - Number.isNaN(by[b])) || sign * (by[a] - by[b]) || a - b);
    }
    if (top) (chosen = -1), (view.scrollTop = 0);
    view.parentElement.setAttribute("aria-rowcount", order.length + 1);
    space.style.height = `${Math.min(TALLEST, order.length * ROW)}px`;
    summary.textContent = said();
    drawn.clear();
    draw();
  }

  function said() {
    const listed = `${count(order.length)} ${order.length === 1 ? "latent" : "latents"}`;
    if (!matches) return order.length === data.n ? listed : `${listed} of ${count(data.n)}`;
    if (matches.problem) return matches.problem;
    const done = matches.searched >= data.n ? `searched all ${count(data.n)}` : `searched ${count(matches.searched)} of ${count(data.n)} …`;
    return `${listed} with ${state.regex ? `/${state.q}/` : `“${state.q}”`} in ${state.all ? "all" : "the strongest"} examples or the explanation · ${done}`;
  }

  // The rows that are in view. In a list that is taller than a browser can scroll, places are scaled.
  function draw() {
    if (!view || view.hidden) return;
    const tall = Math.min(TALLEST, order.length * ROW);
    const most = Math.max(1, tall - view.clientHeight);
    const offset = (Math.min(view.scrollTop, most) / most) * Math.max(0, order.length * ROW - view.clientHeight);
    const first = Math.max(0, Math.floor(offset / ROW) - 4);
    const last = Math.min(order.length, Math.ceil((offset + view.clientHeight) / ROW) + 4);
    const place = Math.min(view.scrollTop, most) - (offset - first * ROW);
    rows.style.transform = `translateY(${place}px)`;
    const had = rows.contains(document.activeElement);
    const before = drawn;
    drawn = new Map();
    for (let i = first; i < last; i++) drawn.set(i, before.get(i) ?? rowOf(i));
    rows.replaceChildren(...drawn.values());
    if (had) (rows.querySelector(".chosen a") ?? view).focus({ preventScroll: true });
    clearTimeout(later);
    later = setTimeout(() => readLines(order.slice(first, last)), 60); // when scrolling has come to rest
  }

  // The strongest examples of the rows in view.
  async function readLines(wanted) {
    const missing = [...wanted].filter((row) => !lines.has(row) && data.head.count[row] && !matches?.get(row) && !data.explained[row]);
    if (!missing.length || !saefast.tokensReady) return;
    if (lines.size > 5000) lines.clear();
    await Promise.all(missing.map(async (row) => {
      const found = await saefast.search.strongest(row).catch(() => null);
      if (!found) return lines.set(row, null);
      const spans = Array.from(found.tokens, (token, i) => (i === found.peak ? el("b", {}, saefast.tokens.token(token)) : saefast.tokens.token(token)));
      lines.set(row, [el("div", { class: "before" }, el("div", {}, spans.slice(0, found.peak))), el("div", { class: "after" }, spans.slice(found.peak))]);
    }));
    for (const place of rows.querySelectorAll("[data-line]")) if (lines.get(Number(place.dataset.line))) place.replaceChildren(...lines.get(Number(place.dataset.line)));
  }

  function rowOf(i) {
    const row = order[i];
    const { head } = data;
    const latent = head.latent[row];
    const link = el("a", { href: `#latent/${latent}` }, String(latent));

    return el("div", { class: i === chosen ? "row chosen" : "row", role: "row", "aria-rowindex": i + 2, onclick: (event) => event.target.closest("a") || document.getSelection().toString() || link.click() },
      el("div", { class: "latent", role: "cell" }, link),
      el("div", { class: "density-cell", role: "cell" }, saefast.charts.density(data.density(row)), percent(data.density(row))),
      el("div", { class: "maximum", role: "cell" }, number(head.max[row])),
      el("div", { class: "count", role: "cell" }, count(head.count[row])),
      el("div", { class: "tokens", role: "cell" }, tokensOf(row)), says(row));
  }

  function tokensOf(row) {
    if (!data.head.count[row]) return el("span", { class: "quiet" }, "never active");
    return saefast.tokensReady ? data.peaks(row).slice(0, 4).map((token) => el("span", { class: "chip" }, saefast.tokens.token(token))) : [];
  }

  // What a row says of its latent: where it matched, else its explanation, else its strongest example.
  function says(row) {
    const where = matches?.get(row);
    if (where) {
      const [begin, end] = where.span;
      const shown = (text) => text.replace(/[\s\p{C}]+/gu, " ");
      return el("div", { class: "explanation", role: "cell" }, el("bdi", { class: "match" }, shown(where.text.slice(Math.max(0, begin - 60), begin)), el("mark", {}, shown(where.text.slice(begin, end)) || "·"), shown(where.text.slice(end, end + 120))));
    }
    for (const { explanation, scores } of (data.explained[row] ?? []).slice(0, 1)) {
      const best = Object.entries(scores).map(([name, score]) => `${name} ${number(score)}`);
      return el("div", { class: "explanation", role: "cell" }, el("bdi", {}, explanation), " ", el("span", { class: "quiet" }, best.join(" · ")));
    }
    const known = lines.get(row);
    return el("div", { class: "strongest", role: "cell", "data-line": known === undefined ? row : null }, known ?? []);
  }

  function choose(i) {
    if (!order.length) return;
    chosen = Math.max(0, Math.min(order.length - 1, i));
    const tall = Math.min(TALLEST, order.length * ROW);
    const scale = Math.max(1, tall - view.clientHeight) / Math.max(1, order.length * ROW - view.clientHeight);
    const top = chosen * ROW * scale;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW - view.clientHeight;
    drawn.clear();
    draw();
    (rows.querySelector(".chosen a") ?? view).focus({ preventScroll: true });
  }

  function keys(event) {
    const page = Math.max(1, Math.floor(view.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault(), event.stopPropagation(), choose(chosen < 0 && Math.abs(steps[event.key]) === 1 ? 0 : chosen + steps[event.key]);
    }
  }

  function show(section, query) {
    if (!view) build(section);
    const next = { ...DEFAULTS };
    for (const [key, value] of new URLSearchParams(query)) if (key in next) next[key] = value;
    if (JSON.stringify(next) !== JSON.stringify(state) || !order.length) apply(next);
    else draw();
    document.getElementById("query").value = state.q;
  }

  // The latent before or after another one, as they are listed.
  function beside(row, step) {
    const at = order.indexOf(row);
    if (at >= 0) return order[at + step];
    return row + step >= 0 && row + step < data.n ? row + step : undefined;
  }
  const address = () => `#list${Object.entries(state).some(([key, value]) => value !== DEFAULTS[key]) ? `?${new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]))}` : ""}`;
  return { show, update, beside, choose: (step) => choose(chosen < 0 ? 0 : chosen + step), refresh: () => view && (fillSorts(), list()), address, get query() { return state.q; }, get order() { return order; } };
})();

// The page of a latent, as in "Towards Monosemanticity".
"use strict";

saefast.latent = (() => {
  const { el, number, count, percent, data } = saefast;
  let current = -1;
  let log = saefast.stored("log") !== "linear";

  const box = (title, note, ...content) => el("section", { class: "box" }, el("h2", {}, title, " ", note ? el("small", {}, note) : null), ...content);

  function linkTo(latent) {
    const row = data.rowOf(latent);
    return row === undefined ? el("span", { class: "quiet" }, String(latent)) : el("a", { href: `#latent/${latent}` }, String(latent));
  }

  function saysOf(row) {
    if (row === undefined) return [];
    const said = data.explained[row]?.[0];
    if (said) return [el("bdi", {}, said.explanation)];
    if (!data.head.count[row]) return [el("span", { class: "quiet" }, "never active")];
    return data.peaks(row).slice(0, 4).map((token) => el("span", { class: "chip" }, saefast.tokens.token(token)));
  }

  // Latents beside a number: neighbours and correlations.
  function neighbours(title, note, table) {
    if (!table) return null;
    const lines = [];
    for (let i = 0; i < table.indices.length; i++) {
      if (table.indices[i] < 0) continue;
      lines.push(el("tr", {}, el("td", {}, linkTo(table.indices[i])), el("td", { class: "value" }, number(table.values[i])), el("td", { class: "says" }, saysOf(data.rowOf(table.indices[i])))));
    }
    return box(title, note, lines.length ? el("table", {}, el("thead", { class: "hidden" }, el("tr", {}, ["latent", "value", "tokens"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, lines)) : el("p", { class: "quiet" }, "none"));
  }

  function coordinates(title, note, table, share) {
    if (!table) return null;
    const lines = [];
    for (let i = 0; i < table.indices.length; i++) {
      if (table.indices[i] < 0) continue;
      lines.push(el("tr", {}, el("td", {}, String(table.indices[i])), el("td", { class: "value" }, number(table.values[i])), share ? el("td", { class: "value" }, percent(table.l1[i])) : null));
    }
    const names = share ? ["neuron", "weight", "of L1"] : ["neuron", "correlation"];
    return box(title, note, lines.length ? el("table", { class: "narrow" }, el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, lines)) : el("p", { class: "quiet" }, "none"));
  }

  function logits(table) {
    if (!table) return null;
    const side = (kind, title) => {
      const lines = Array.from(table[`${kind}_tokens`], (token, i) => {
        const bar = el("span", { class: `weight ${kind}`, "aria-hidden": "true" });
        bar.style.setProperty("--size", Math.min(1, Math.abs(table[kind][i]) / Math.max(Math.abs(table.positive[0]), Math.abs(table.negative[0]), 1e-9)).toFixed(3));
        return el("tr", {}, el("td", {}, saefast.tokens.token(token)), el("td", { class: "value" }, bar, number(table[kind][i])));
      });
      return el("table", {}, el("caption", {}, title), el("tbody", {}, lines));
    };
    const chart = saefast.charts.histogram(table.histogram, table.lowest[0], table.highest[0], { label: `Logit weights of all tokens, from ${number(table.lowest[0])} to ${number(table.highest[0])}`, log: true, signed: true });
    return box("Logit weights", "per unit, minus the median", el("div", { class: "two" }, side("negative", "negative"), side("positive", "positive")), chart, el("p", { class: "quiet" }, "all tokens, log scale"));
  }

  function activations(latent) {
    const { n_intervals } = data.head.config;
    const place = el("div");
    const draw = () => place.replaceChildren(saefast.charts.histogram(latent.histogram, 0, latent.max, { label: `Histogram of ${count(latent.count)} activations from 0 to ${number(latent.max)}`, log, marks: n_intervals }));
    const toggle = el("button", { type: "button", class: "small", "aria-pressed": String(log), onclick: () => {
      log = !log;
      saefast.stored("log", log ? "log" : "linear");
      toggle.setAttribute("aria-pressed", String(log));
      draw();
    } }, "log");
    draw();
    const lines = [["density", percent(latent.count / data.head.n_rows)], ["active on", `${count(latent.count)} tokens`], ["maximum", number(latent.max, 4)], ["mean", number(latent.mean)], ["std", number(Math.sqrt(latent.variance))], ["skewness", number(latent.skewness)], ["kurtosis", number(latent.kurtosis)], ["energy", number(latent.energy)]];
    const list = el("dl", { class: "statistics" }, lines.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    return box("Activations", null, latent.count ? [place, el("p", { class: "legend" }, `${latent.histogram.length} bins, ${n_intervals} intervals `, toggle)] : el("p", { class: "quiet" }, "never active"), list);
  }

  function explanations(row) {
    return (data.explained[row] ?? []).map((one) => {
      const about = [one.method, one.model].filter(Boolean).join(", ");
      const scores = Object.entries(one.scores).map(([name, score]) => el("span", { class: "score" }, name, " ", el("b", {}, number(score))));
      return el("div", { class: "said" }, el("p", {}, el("bdi", {}, one.explanation)), el("p", { class: "quiet" }, about, about && scores.length ? " · " : "", scores));
    });
  }

  // The nearest latents of the other SAE, and the examples of one of them.
  function compared(row) {
    if (!data.head.compared) return null;
    const tables = ["decoder", "coactivation"].filter((name) => data.head[`other.${name}.indices`]);
    const place = el("div", { class: "examples other" });
    const buttons = [];
    const open = async (latent, button) => {
      buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
      try {
        const other = await data.otherLatent(latent);
        const scale = saefast.examples.scaleOf(other, true);
        const about = `density ${percent(other.count / data.head.compared.n_rows)} · maximum ${number(other.max)}`;
        place.replaceChildren(el("h3", {}, `${data.head.other}: latent ${latent} `, el("small", {}, about)), el("div", { role: "list" }, other.examples.slice(0, 12).map((one) => saefast.examples.row(one, scale))));
      } catch (error) {
        place.replaceChildren(saefast.problem(error));
      }
    };
    const lists = tables.map((name) => {
      const indices = data.head[`other.${name}.indices`];
      const values = data.head[`other.${name}.values`];
      const each = indices.length / data.n;
      const found = [];
      for (let i = row * each; i < (row + 1) * each; i++) {
        if (indices[i] < 0) continue;
        const latent = indices[i];
        const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => open(latent, button) }, `${latent} `, el("small", {}, number(values[i])));
        buttons.push(button);
        button.latent = latent;
        found.push(button);
      }
      return el("p", {}, name === "decoder" ? "by decoder cosine " : "by co-activation ", found.length ? found : "none");
    });
    if (buttons.length) open(buttons[0].latent, buttons[0]);
    return el("section", { class: "compared" }, el("h2", {}, "Beside ", el("bdi", {}, data.head.other)), lists, place);
  }

  async function show(section, latent) {
    const row = data.rowOf(latent);
    current = row ?? -1;
    if (row === undefined) {
      section.replaceChildren(el("h1", { tabindex: "-1" }, "No such latent"), el("p", {}, `This site shows ${count(data.n)} of ${count(data.head.d_sae)} latents, and ${Number.isInteger(latent) ? latent : "this"} is not one of them. `, el("a", { href: "#list" }, "All that there are.")));
      return;
    }
    const found = await data.latent(row);
    await saefast.tokens.ready();
    if (current !== row) return; // another one was asked for meanwhile
    const { tables } = found;
    const step = (by, text, key) => {
      const other = saefast.list.beside(row, by);
      return el("a", { class: "step", ...(other === undefined ? { "aria-disabled": "true" } : { href: `#latent/${data.head.latent[other]}` }), title: `${text} (${key})` }, by < 0 ? "← " : "", text, by > 0 ? " →" : "");
    };
    const groups = saefast.examples.groups(found);
    const names = { top: "top", interval: "intervals", quantile: "quantiles", random: "random", inactive: "inactive" };
    const jumps = [...new Set(groups.map(([name]) => name))].map((name) => el("button", { type: "button", onclick: () => groups.find(([other]) => other === name)[1].scrollIntoView() }, names[name]));
    const side = el("aside", { class: "side", "aria-label": "Statistics and effects" }, activations(found), logits(tables.logits),
      neighbours("Decoder neighbours", "cosine", tables.decoder), neighbours("Encoder neighbours", "cosine", tables.encoder),
      neighbours("Correlated latents", "activations", tables.correlated), coordinates("Neuron alignment", "largest weights", tables.alignment, true),
      coordinates("Correlated neurons", "activations", tables.correlated_neurons, false));
    const dead = found.count ? null : el("p", { class: "quiet" }, `It was active on none of ${count(data.head.n_rows)} tokens.`);
    const legend = el("p", { class: "legend" }, "colour: activation", data.head.ablations ? [" · underline: ", el("span", { class: "token helped key" }, "less likely"), " or ", el("span", { class: "token hurt key" }, "more likely"), " without the latent"] : [], " · click a line for its whole window");
    const expand = el("button", { type: "button", id: "expand", title: "Whole windows (e)", "aria-pressed": "false", onclick: () => {
      const open = expand.getAttribute("aria-pressed") !== "true";
      expand.setAttribute("aria-pressed", String(open));
      groups.forEach(([, group]) => group.fill());
      section.querySelectorAll(".example").forEach((one) => one.toggle(open));
    } }, "whole windows");
    fill(groups, row);
    section.replaceChildren(
      el("div", { class: "heading" }, el("h1", { tabindex: "-1" }, `Latent ${found.latent}`), el("div", { class: "peaks" }, data.peaks(row).map((token) => el("span", { class: "chip" }, saefast.tokens.token(token)))),
        el("nav", { class: "steps", "aria-label": "Other latents" }, step(-1, "previous", "k"), step(1, "next", "j"), el("a", { href: saefast.list.address() }, "list"))),
      ...explanations(row),
      el("div", { class: "page" }, side, el("div", { class: "examples" }, el("div", { class: "jumps" }, jumps, expand), legend, dead, ...beside(groups, compared(row)))));
  }

  // The first groups are in view; the others follow one by one, so that the page is there at once.
  async function fill(groups, row) {
    for (const [i, [, group]] of groups.entries()) {
      if (i > 1) await saefast.pause();
      if (current !== row) return;
      group.fill();
    }
  }

  // The other SAE comes after the strongest examples, so that both are seen together.
  function beside(groups, other) {
    const elements = groups.map(([, element]) => element);
    if (other) elements.splice(groups[0]?.[0] === "top" ? 1 : 0, 0, other);
    return elements;
  }

  function step(by) {
    const other = saefast.list.beside(current, by);
    if (other !== undefined) location.hash = `#latent/${data.head.latent[other]}`;
  }
  return { show, step, saysOf };
})();

// Examples of a latent: a line each, with the token in one column; a click shows the whole window.
"use strict";

saefast.examples = (() => {
  const { el, number } = saefast;
  const LEFT = 30, RIGHT = 15; // tokens beside that of the example, before a click; those that do not fit are cut off

  function spanOf(example, i, scale) {
    const element = saefast.tokens.token(example.tokens[i]);
    const act = example.acts[i];
    const effect = example.effects?.[i];
    const lines = [];
    if (act) lines.push(`activation ${number(act, 4)}`);
    if (effect !== undefined && !Number.isNaN(effect)) {
      const share = scale.effect ? Math.min(1, Math.abs(effect) / scale.effect) : 0;
      if (share > 0.04) {
        element.classList.add(effect < 0 ? "helped" : "hurt");
        element.style.setProperty("--e", (0.25 + 0.75 * share).toFixed(2));
      }
      lines.push(`log-likelihood without the latent ${effect > 0 ? "+" : ""}${number(effect, 2)}`);
    }
    lines.push(`token ${saefast.tokens.none(example.tokens[i]) ? "?" : saefast.tokens.idOf(example.tokens[i])}`);
    saefast.tokens.heat(element, scale.max ? act / scale.max : 0, lines.join("\n"));
    if (act) element.dataset.act = number(act, 2);
    if (i === example.peak && example.group !== "inactive") element.classList.add("peak");
    return element;
  }

  const range = (example, from, to, scale) => {
    const found = [];
    for (let i = Math.max(0, from); i < Math.min(to, example.tokens.length); i++) found.push(spanOf(example, i, scale));
    return found;
  };

  function line(example, scale) {
    const { peak } = example;
    return [
      el("div", { class: "before" }, el("div", {}, range(example, peak - LEFT, peak, scale))),
      el("div", { class: "after" }, range(example, peak, peak + RIGHT + 1, scale)),
    ];
  }

  function row(example, scale) {
    const where = `context ${example.context}, token ${example.start + example.peak}, document ${example.document}, for ${example.split === "score" ? "scoring" : "explaining"}`;
    const button = el("button", { type: "button", class: "act", "aria-expanded": "false", title: where }, number(example.act));
    button.setAttribute("aria-label", `Activation ${number(example.act)}, ${where}: show the whole window`);
    const body = el("div", { class: "line" }, line(example, scale));
    const element = el("div", { class: "example", role: "listitem" }, button, body);
    const toggle = (open = !element.classList.contains("open")) => {
      if (open === element.classList.contains("open")) return;
      element.classList.toggle("open", open);
      button.setAttribute("aria-expanded", String(open));
      body.replaceChildren(...(open ? window(example, scale) : line(example, scale)));
    };
    button.addEventListener("click", () => toggle());
    body.addEventListener("click", (event) => {
      if (!document.getSelection().toString() && !event.target.closest("a")) toggle();
    });
    element.toggle = toggle;
    return element;
  }

  function window(example, scale) {
    const all = el("p", { class: "whole" }, range(example, 0, example.tokens.length, scale));
    const about = el("p", { class: "where" }, `context ${example.context} · token ${example.start + example.peak} · document ${example.document} · for ${example.split === "score" ? "scoring" : "explaining"}`);
    const inSite = saefast.data.head.contexts.includes(example.context) && !scale.other;
    if (inSite) about.append(" · ", el("a", { href: `#text/${example.context}/${example.start + example.peak}?latent=${scale.latent}` }, "all active latents"));
    return [all, about];
  }

  // scale: {max: of the latent, latent, other: of the other SAE}; effects are scaled by the largest shown.
  function scaleOf(latent, other = false) {
    let effect = 0;
    for (const example of latent.examples) for (const one of example.effects ?? []) effect = Math.max(effect, Math.abs(one) || 0);
    return { max: latent.max, latent: latent.latent, other, effect };
  }

  function group(title, note, examples, scale) {
    if (!examples.length) return null;
    const head = el("h3", {}, title, " ", el("small", {}, note));
    const list = el("div", { role: "list" });
    list.style.minHeight = `${examples.length * 28}px`;
    const section = el("section", { class: "group" }, head, list);
    section.fill = () => list.childElementCount || list.append(...examples.map((example) => row(example, scale)));
    return section;
  }

  // The groups, still empty (`fill`), as in the paper: the strongest, then intervals from the strongest down, then quantiles, random, inactive.
  function groups(latent) {
    const { n_intervals, n_quantiles } = saefast.data.head.config;
    const scale = scaleOf(latent);
    const of = (name, bin) => latent.examples.filter((one) => one.group === name && (bin === undefined || one.bin === bin));
    const found = [["top", group("Top activations", `largest ${number(latent.max)}, one per context`, of("top"), scale)]];
    for (let i = n_intervals - 1; i >= 0; i--) {
      const [low, high] = [i, i + 1].map((edge) => number((latent.max * edge) / n_intervals));
      found.push(["interval", group(`Interval ${low} – ${high}`, `${i + 1} of ${n_intervals}, ${intervalShare(latent, i, n_intervals)}`, of("interval", i), scale)]);
    }
    for (let i = n_quantiles - 1; i >= 0; i--) {
      const note = `contexts by their largest activation, from ${Math.round((100 * i) / n_quantiles)} to ${Math.round((100 * (i + 1)) / n_quantiles)} %`;
      found.push(["quantile", group(`Quantile ${i + 1} of ${n_quantiles}`, note, of("quantile", i), scale)]);
    }
    found.push(["random", group("Random", "tokens on which it is active", of("random"), scale)]);
    found.push(["inactive", group("Inactive", "windows in which it is nowhere active", of("inactive"), scale)]);
    return found.filter(([, element]) => element);
  }

  // Of the bins of the histogram when they make whole intervals.
  function intervalShare(latent, i, n) {
    const bins = latent.histogram.length;
    if (bins % n || !latent.count) return "";
    const inside = latent.histogram.subarray((i * bins) / n, ((i + 1) * bins) / n).reduce((a, b) => a + b, 0);
    return `${saefast.percent(inside / latent.count)} of activations`;
  }
  return { groups, row, scaleOf };
})();

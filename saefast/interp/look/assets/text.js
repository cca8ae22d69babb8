// A text with all latents that are active on each of its tokens, and with the activations of one of them on all tokens.
"use strict";

saefast.text = (() => {
  const { el, number, count, data } = saefast;
  const SHOWN = 60; // latents of a whole text that are listed
  let page, firsts, spans, panel, list, context;
  let token = -1; // whose latents are listed; -1: those of the whole text
  let pointed = -1; // under the mouse: its latents are listed meanwhile
  let latent = -1; // that colours the text

  function latentsOfText() {
    const found = new Map();
    for (let i = 0; i < page.latents.length; i++) {
      const one = found.get(page.latents[i]) ?? { latent: page.latents[i], act: 0, times: 0 };
      one.act = Math.max(one.act, page.acts[i]);
      one.times++;
      found.set(page.latents[i], one);
    }
    const share = (one) => one.act / (data.head.max[data.rowOf(one.latent)] || 1);
    return [...found.values()].sort((a, b) => share(b) - share(a) || a.latent - b.latent);
  }

  function latentsOfToken(i) {
    const found = [];
    for (let k = firsts[i]; k < firsts[i + 1]; k++) found.push({ latent: page.latents[k], act: page.acts[k] });
    return found;
  }

  function colour() {
    const acts = new Float32Array(spans.length);
    const row = data.rowOf(latent);
    for (let i = 0; i < spans.length; i++) {
      for (let k = firsts[i]; k < firsts[i + 1]; k++) if (page.latents[k] === latent) acts[i] = page.acts[k];
      spans[i].classList.remove("on");
      spans[i].removeAttribute("data-act");
      spans[i].title = acts[i] ? `latent ${latent}: ${number(acts[i], 4)}` : `${page.n_active[i]} active latents`;
      if (acts[i]) saefast.tokens.heat(spans[i], acts[i] / data.head.max[row]), (spans[i].dataset.act = number(acts[i], 2));
    }
  }

  function draw() {
    const at = pointed >= 0 ? pointed : token;
    const here = at >= 0;
    const found = here ? latentsOfToken(at) : latentsOfText();
    const title = here ? [`Token ${at}: `, el("span", { class: "chip" }, saefast.tokens.token(page.tokens[at]))] : ["The whole text"];
    const note = here ? (page.encoded[at] ? `${found.length} active latents` : "no activations were recorded here") : `${count(found.length)} latents, by their share of their maximum`;
    const largest = Math.max(...found.map((one) => one.act), 1e-9);
    const lines = found.slice(0, here ? 1000 : SHOWN).map((one) => {
      const bar = el("span", { class: "weight positive", "aria-hidden": "true" });
      bar.style.setProperty("--size", (one.act / largest).toFixed(3));
      const pick = el("button", { type: "button", class: "pick", "aria-pressed": String(one.latent === latent), title: "Colour the text by this latent", onclick: () => pickLatent(one.latent) }, "◐");
      pick.setAttribute("aria-label", `Colour the text by latent ${one.latent}`);
      return el("tr", { class: one.latent === latent ? "chosen" : null }, el("td", {}, pick), el("td", {}, el("a", { href: `#latent/${one.latent}` }, String(one.latent))), el("td", { class: "value" }, bar, number(one.act)), el("td", { class: "says" }, saefast.latent.saysOf(data.rowOf(one.latent))));
    });
    const names = ["colour", "latent", "activation", "tokens"];
    list.replaceChildren(el("h2", {}, title, " ", el("small", {}, note)),
      el("table", {}, el("thead", { class: "hidden" }, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, lines)),
      token >= 0 ? el("button", { type: "button", onclick: () => pickToken(-1) }, "the whole text") : "");
    spans.forEach((span, i) => {
      span.classList.toggle("here", i === token);
      span.setAttribute("aria-selected", String(i === token));
    });
    if (token >= 0) panel.setAttribute("aria-activedescendant", spans[token].id);
    else panel.removeAttribute("aria-activedescendant");
  }

  function keep() {
    const query = latent >= 0 ? `?latent=${latent}` : "";
    history.replaceState(null, "", `#text/${context}${token >= 0 ? `/${token}` : ""}${query}`);
  }

  function pickToken(i) {
    token = Math.max(-1, Math.min(spans.length - 1, i));
    draw(), keep();
    if (token >= 0) spans[token].scrollIntoView({ block: "nearest" });
  }

  function point(i) {
    if (i !== pointed) (pointed = i), draw();
  }

  function pickLatent(one) {
    latent = latent === one ? -1 : one;
    colour(), draw(), keep();
  }

  function keys(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, j: 1, ArrowLeft: -1, ArrowUp: -1, k: -1, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") event.stopPropagation(), pickToken(-1);
    else if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault(), event.stopPropagation(), pickToken(Math.max(0, token + steps[event.key]));
    }
  }

  async function show(section, [wanted, at], query) {
    const { contexts } = data.head;
    if (!contexts.length) return void section.replaceChildren(el("h1", { tabindex: "-1" }, "Texts"), el("p", {}, "This site was written without texts (n_texts = 0)."));
    const number_ = wanted === undefined ? contexts[0] : Number(wanted);
    if (!contexts.includes(number_)) {
      return void section.replaceChildren(el("h1", { tabindex: "-1" }, "No such text"), el("p", {}, `This site has ${contexts.length} of ${count(data.head.n_contexts)} contexts, and this is none of them. `, el("a", { href: `#text/${contexts[0]}` }, "The first of them.")));
    }
    const found = await saefast.load(`text-${number_}`);
    await saefast.tokens.ready();
    (page = found), (context = number_), (pointed = -1);
    firsts = new Uint32Array(page.n_active.length + 1);
    for (let i = 0; i < page.n_active.length; i++) firsts[i + 1] = firsts[i] + page.n_active[i];
    token = at === undefined || !(Number(at) < page.tokens.length) ? -1 : Number(at);
    latent = Number(new URLSearchParams(query).get("latent") ?? -1);
    if (data.rowOf(latent) === undefined) latent = -1;
    spans = Array.from(page.tokens, (one, i) => {
      const span = saefast.tokens.token(one);
      span.id = `t${i}`;
      span.setAttribute("role", "option");
      if (!page.encoded[i]) span.classList.add("left-out");
      return span;
    });
    panel = el("div", { class: "running whole", role: "listbox", tabindex: "0", "aria-label": `Tokens of context ${context}; arrow keys go from token to token`, onkeydown: keys,
      onpointerover: (event) => event.pointerType === "mouse" && point(spans.indexOf(event.target.closest("[data-t]"))),
      onpointerleave: () => point(-1),
      onclick: (event) => {
        const span = event.target.closest("[data-t]");
        if (span && !document.getSelection().toString()) pickToken(spans.indexOf(span) === token ? -1 : spans.indexOf(span));
      } }, spans);
    list = el("aside", { class: "side", "aria-label": "Active latents" });
    const place = contexts.indexOf(context);
    const choice = el("select", { id: "context", onchange: () => (location.hash = `#text/${choice.value}`) }, Array.from(contexts, (one) => el("option", { value: one }, String(one))));
    choice.value = String(context);
    const to = (i) => (location.hash = `#text/${contexts[(i + contexts.length) % contexts.length]}`);
    section.replaceChildren(
      el("div", { class: "heading" }, el("h1", { tabindex: "-1" }, `Context ${context}`),
        el("div", { class: "steps" }, el("button", { type: "button", onclick: () => to(place - 1) }, "← previous"), el("button", { type: "button", onclick: () => to(place + 1) }, "next →"), el("button", { type: "button", onclick: () => to(Math.floor(Math.random() * contexts.length)) }, "random"), el("label", { class: "field" }, `one of ${contexts.length} `, choice))),
      el("p", { class: "legend" }, "Choose a token for the latents that are active on it; ◐ colours the text by a latent. Pale tokens have no activations."),
      el("div", { class: "page texts" }, el("div", {}, panel), list));
    colour(), draw();
  }
  const step = (by) => context !== undefined && (location.hash = `#text/${data.head.contexts[(data.head.contexts.indexOf(context) + by + data.head.contexts.length) % data.head.contexts.length]}`);
  return { show, step };
})();

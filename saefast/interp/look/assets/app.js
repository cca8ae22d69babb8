// Which view is shown, the keys, and the tools at the top.
"use strict";

(() => {
  const { el, data } = saefast;
  const views = ["list", "latent", "text", "map"];
  const section = Object.fromEntries(views.map((name) => [name, document.getElementById(name)]));
  const main = document.getElementById("main");
  const query = document.getElementById("query");
  const places = new Map(); // address -> how far it was scrolled
  let turn = 0;
  let address = null;

  // #view/part/part?query
  async function route() {
    const mine = ++turn;
    const [path, search = ""] = location.hash.slice(1).split("?");
    const [wanted, ...parts] = (path || "list").split("/");
    const name = views.includes(wanted) ? wanted : "list";
    const first = address === null;
    if (!first) places.set(address, scrollY);
    address = location.hash;
    try {
      if (name === "list") section.list.hidden = false; // it measures its height
      if (name === "map") section.map.hidden = false;
      if (name === "list") saefast.list.show(section.list, search);
      else if (name === "latent") await saefast.latent.show(section.latent, /^\d+$/.test(parts[0]) ? Number(parts[0]) : NaN);
      else if (name === "text") await saefast.text.show(section.text, parts, search);
      else await saefast.map.show(section.map);
    } catch (error) {
      if (mine === turn) section[name].replaceChildren(el("h1", { tabindex: "-1" }, "Not complete"), saefast.problem(error));
    }
    if (mine !== turn) return;
    for (const other of views) section[other].hidden = other !== name;
    for (const link of document.querySelectorAll("nav [data-view]")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const heading = section[name].querySelector("h1");
    document.title = `${heading.textContent} · ${data.head.title}`;
    if (!first && document.activeElement !== query) heading.focus({ preventScroll: true });
    if (name !== "list") scrollTo(0, places.get(address) ?? 0);
    performance.mark(`shown ${address}`);
  }

  const random = () => (location.hash = `#latent/${data.head.latent[Math.floor(Math.random() * data.n)]}`);

  function theme() {
    const root = document.documentElement;
    root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
    saefast.stored("theme", root.dataset.theme);
    saefast.map.redraw();
    saefast.say(`${root.dataset.theme} theme`);
  }

  function numbers() {
    const on = document.body.classList.toggle("numbers");
    document.getElementById("numbers").setAttribute("aria-pressed", String(on));
    saefast.say(on ? "activations as numbers" : "activations as colour");
  }

  function help() {
    const keys = [["/", "search"], ["j k or ↓ ↑", "next, previous (latent, row, text)"], ["Enter", "open"], ["r", "a random latent"], ["e", "whole windows"], ["n", "activations as numbers"], ["l x m", "latents, texts, map"], ["t", "light or dark"], ["Esc", "leave the search, close this"]];
    const signs = [["· ↵ →", "space, end of a line, tab"], ["⟨e2 80⟩", "bytes that are no character alone"], ["⟨U+202E⟩", "a character that cannot be seen"], ["outline", "the token of the example"], ["underline", "what the token loses (solid) or gains (dashed) in log-likelihood when the latent is removed"]];
    const list = (pairs, tag) => el("dl", {}, pairs.map(([name, text]) => el("div", {}, el("dt", {}, el(tag, {}, name)), el("dd", {}, text))));
    const { source, version } = data.head;
    const about = Object.entries(source).map(([key, value]) => `${key}: ${value}`).join(" · ");
    const dialog = el("dialog", { "aria-labelledby": "help-title", onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && dialog.close() },
      el("h2", { id: "help-title" }, "Keys and signs"), list(keys, "kbd"), list(signs, "span"), el("p", { class: "quiet" }, "Copied text is the text itself, without the signs."), el("p", { class: "quiet" }, `${about} · written by saefast ${version}`),
      el("form", { method: "dialog" }, el("button", {}, "Close")));
    document.body.append(dialog);
    dialog.showModal();
  }

  const shown = () => views.find((name) => !section[name].hidden);
  function step(by) {
    if (shown() === "latent") saefast.latent.step(by);
    else if (shown() === "list") saefast.list.choose(by);
    else if (shown() === "text") saefast.text.step(by);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const { target } = event;
    if (event.key === "Escape" && target === query) return main.focus();
    if (target.matches("input, select, textarea")) {
      if (target === query && event.key === "ArrowDown" && shown() === "list") event.preventDefault(), saefast.list.choose(0);
      return;
    }
    const scrolls = shown() === "list" || event.key === "j" || event.key === "k";
    const does = { "/": () => (query.focus(), query.select()), "?": help, t: theme, n: numbers, r: random, j: () => step(1), k: () => step(-1), l: () => (location.hash = saefast.list.address()), x: () => (location.hash = "#text"), m: () => (location.hash = "#map"), e: () => section.latent.hidden || document.getElementById("expand")?.click() };
    if (scrolls) (does.ArrowDown = does.j), (does.ArrowUp = does.k);
    if (shown() === "latent") (does.ArrowRight = does.j), (does.ArrowLeft = does.k);
    if (does[event.key]) event.preventDefault(), does[event.key]();
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => saefast.map.redraw());

  // The search is the list's: typing goes there.
  let typing;
  query.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      if (shown() === "list") saefast.list.update({ q: query.value });
      else location.hash = `#list?${new URLSearchParams({ q: query.value })}`;
    }, 150);
  });
  document.querySelector("form.search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = query.value.trim();
    const row = /^#?\d+$/.test(text) ? data.rowOf(Number(text.replace("#", ""))) : undefined;
    if (row !== undefined) clearTimeout(typing), (location.hash = `#latent/${data.head.latent[row]}`);
    else if (shown() === "list") saefast.list.choose(0);
  });

  async function start() {
    document.getElementById("theme").addEventListener("click", theme);
    document.getElementById("numbers").addEventListener("click", numbers);
    document.getElementById("random").addEventListener("click", random);
    document.getElementById("help").addEventListener("click", help);
    try {
      if (typeof DecompressionStream === "undefined") throw new saefast.Incomplete("This page needs a browser of 2023 or later.");
      await data.ready();
      document.getElementById("wait").remove();
      if (!data.head.map) document.querySelector("[data-view=map]").hidden = true;
      await route();
      window.addEventListener("hashchange", route);
      performance.mark("list");
      await saefast.tokens.ready();
      saefast.tokensReady = true;
      if (data.head.n_explanations) await data.readExplanations();
      saefast.list.refresh();
      if (data.head.n_explanations && !section.latent.hidden) await route();
      performance.mark("ready");
    } catch (error) {
      document.getElementById("wait")?.remove();
      main.prepend(saefast.problem(error));
    }
  }
  start();
})();

"use strict";
// Lists and searches the questions, and marks the section in view.
// All texts are set with textContent: nothing of the data becomes markup.

const PER_PAGE = 25;
const data = JSON.parse(document.getElementById("question-data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// A text of the data, kept apart from the text around it in both directions.
function isolated(text) {
  const made = element("bdi", "", text);
  made.dir = "auto";
  return made;
}

function options(select, names, values) {
  names.forEach((name, i) => {
    const option = element("option", "", name);
    option.value = values[i];
    select.append(option);
  });
}

// "won", "lost", "both" or "neither", for two ranks (from 1, 0 = not found).
function outcome(one, other, k) {
  const first = one > 0 && one <= k;
  const second = other > 0 && other <= k;
  if (first === second) return first ? "both" : "neither";
  return first ? "won" : "lost";
}

const rankText = (rank, depth) => (rank ? String(rank) : `beyond ${depth}`);

// Passage text with the answers marked; places are in UTF-16 units.
function marked(text, spans) {
  const made = isolated("");
  let end = 0;
  for (const [start, stop] of spans) {
    made.append(text.slice(end, start), element("mark", "", text.slice(start, stop)));
    end = stop;
  }
  made.append(text.slice(end));
  return made;
}

function why(words, places) {
  const found = places
    .map((place, i) => {
      if (!place) return `${data.systems[i]}: not in the first ${data.depths[i]}`;
      const score = place[1] === null ? "" : `, score ${place[1]}`;
      return `${data.systems[i]}: rank ${place[0]}${score}`;
    })
    .join("; ");
  const shared = words.length
    ? `words shared with the question, as BM25 counts them: ${words.join(", ")}`
    : "no word shared with the question: only its meaning";
  return `${found}. ${shared[0].toUpperCase()}${shared.slice(1)}.`;
}

function passages(row) {
  const holder = element("div");
  const [, , , read] = data.questions[row];
  if (read) {
    const line = element("p", "why", `The reader's answer, from the passages of ${data.systems[0]}: `);
    line.append(isolated(read[0] || "no answer"), read[1] ? " (correct)" : " (not an accepted answer)");
    holder.append(line);
  }
  const hits = data.hits[row];
  if (!hits) {
    holder.append(element("p", "missing", "The passages of this question are not in this file."));
    return holder;
  }
  for (const [number, spans, words, gold, places] of hits) {
    const [id, title, text] = data.passages[number];
    const made = element("div", spans.length || gold ? "passage right" : "passage");
    const head = element("p");
    const name = element("strong");
    name.append(isolated(title || id));
    head.append(name, ` (passage ${id})${gold ? ", gold" : ""}${spans.length ? ", with an answer" : ""}`);
    const body = element("p");
    body.append(marked(text, spans));
    made.append(head, body, element("p", "why", why(words, places)));
    holder.append(made);
  }
  return holder;
}

function entry(row, one, other, k) {
  const [question, answers, ranks] = data.questions[row];
  const kind = outcome(ranks[one], ranks[other], k);
  const made = element("details", `question ${kind}`);
  const summary = element("summary");
  const asked = element("span", "asked");
  asked.append(isolated(question));
  const moved = element("span", "moved");
  moved.textContent = data.systems
    .map((name, i) => [name, i])
    .filter(([, i]) => i === one || i === other)
    .sort(([, i]) => (i === one ? -1 : 1))
    .map(([name, i]) => `${name} ${rankText(ranks[i], data.depths[i])}`)
    .join(" · ");
  const given = element("span", "answers");
  answers.forEach((answer, i) => given.append(i ? ", " : "", isolated(answer)));
  summary.append(asked, moved, given);
  made.append(summary);
  made.addEventListener("toggle", () => {
    if (made.open && made.children.length === 1) made.append(passages(row));
  });
  return made;
}

function startBrowser() {
  const state = { page: 0 };
  const numbers = data.systems.map((_, i) => i);
  options(byId("one"), data.systems, numbers);
  options(byId("other"), data.systems, numbers);
  byId("other").value = String(Math.min(1, data.systems.length - 1));
  options(byId("depth"), data.ks.map(String), data.ks);
  const folded = data.questions.map(([question, answers]) =>
    `${question}\n${answers.join("\n")}`.toLowerCase());

  function chosen() {
    const one = Number(byId("one").value);
    const other = Number(byId("other").value);
    const k = Number(byId("depth").value);
    const kind = byId("kind").value;
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const counts = { won: 0, lost: 0, both: 0, neither: 0 };
    const rows = data.order.filter((row) => {
      if (!words.every((word) => folded[row].includes(word))) return false;
      const ranks = data.questions[row][2];
      const found = outcome(ranks[one], ranks[other], k);
      counts[found] += 1;
      if (kind === "apart") return found === "won" || found === "lost";
      return kind === "all" || found === kind;
    });
    return { one, other, k, rows, counts };
  }

  function show() {
    const { one, other, k, rows, counts } = chosen();
    const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PER_PAGE;
    byId("list").replaceChildren(
      ...rows.slice(first, first + PER_PAGE).map((row) => entry(row, one, other, k)));
    byId("tally").textContent =
      `${data.systems[one]} against ${data.systems[other]} in the first ${k}: ` +
      `${counts.won} won, ${counts.lost} lost, ${counts.both} both right, ` +
      `${counts.neither} neither; ${rows.length} shown.`;
    byId("place").textContent = `${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  }

  const restart = () => { state.page = 0; show(); };
  for (const id of ["kind", "one", "other", "depth"]) byId(id).addEventListener("change", restart);
  byId("search").addEventListener("input", restart);
  byId("previous").addEventListener("click", () => { state.page -= 1; show(); });
  byId("next").addEventListener("click", () => { state.page += 1; show(); });
  byId("browser").hidden = false;
  show();
}

function markContents() {
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) seen.add(target.id); else seen.delete(target.id);
    }
    const current = [...links.keys()].find((id) => seen.has(id));
    if (!current) return;
    links.forEach((a, id) => {
      if (id === current) a.setAttribute("aria-current", "true");
      else a.removeAttribute("aria-current");
    });
  }, { rootMargin: "-20px 0px -80% 0px" });
  document.querySelectorAll("section").forEach((section) => observer.observe(section));
}

if (data.questions && data.ks.length) startBrowser();
markContents();

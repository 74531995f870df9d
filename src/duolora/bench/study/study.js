"use strict";
const study = document.body.dataset.study, element = (id) => document.getElementById(id);
const place = `study-${study}`;
let kept = {};
try { kept = JSON.parse(localStorage.getItem(place)) || {}; } catch { kept = {}; }
const seed = kept.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
const answers = kept.answers ?? {};
const started = kept.started ?? new Date().toISOString();
let person = kept.person ?? "";

function mulberry32(a) {
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const random = mulberry32(seed);
function shuffled(list) {
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}
const questions = shuffled([...document.querySelectorAll(".question")]);
for (const question of questions) {
  const box = question.querySelector(".options"), none = box.querySelector(".none");
  for (const option of shuffled([...box.querySelectorAll(".option:not(.none)")])) box.insertBefore(option, none);
  box.querySelectorAll(".option").forEach((option, k) => {
    option.querySelector("span").textContent = k + 1;
    option.addEventListener("click", () => choose(question, option.dataset.name));
  });
}
let at = -1, since = 0, next = 0;

function keep() {
  try { localStorage.setItem(place, JSON.stringify({ seed, answers, started, person })); } catch { /* private window */ }
}
function choose(question, chosen) {
  const name = question.dataset.name;
  const shown = [...question.querySelectorAll(".option:not(.none)")].map((o) => o.dataset.name);
  answers[name] = { question: name, chosen, shown, seconds: Math.round((performance.now() - since) / 100) / 10 };
  keep();
  mark(question);
  clearTimeout(next);  // of a double click
  next = setTimeout(() => show(at + 1), 250);
}
function mark(question) {
  const chosen = answers[question.dataset.name]?.chosen;
  for (const o of question.querySelectorAll(".option")) o.setAttribute("aria-pressed", o.dataset.name === chosen);
}
function show(k) {
  clearTimeout(next);
  at = Math.max(-1, Math.min(k, questions.length));
  element("welcome").hidden = at >= 0;
  element("end").hidden = at < questions.length;
  element("steps").hidden = at < 0;
  element("skip").hidden = at >= questions.length;
  questions.forEach((q, i) => { q.hidden = i !== at; });
  const done = Object.keys(answers).length;
  element("progress").value = done;
  element("count").textContent = `${done} / ${questions.length}`;
  since = performance.now();
  document.activeElement?.blur();
  scrollTo(0, 0);
  if (at >= 0 && at < questions.length) mark(questions[at]);
  if (at === questions.length) finish(questions.length - done);
}
function finish(left) {
  element("left").textContent = left ? `${left} of ${questions.length} questions are without an answer; “Back” leads to them.` : "All questions are answered.";
  element("answers").value = JSON.stringify(
    { study, person: person || `anonymous-${seed}`, seed, started, finished: new Date().toISOString(), answers: Object.values(answers) }, null, 1);
}
element("person").value = person;
element("begin").addEventListener("click", () => { person = element("person").value.trim(); keep(); show(0); });
element("back").addEventListener("click", () => show(at - 1));
element("skip").addEventListener("click", () => show(at + 1));
element("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([element("answers").value], { type: "application/json" }));
  link.download = `answers-${study}-${seed}.json`;
  link.click();
  element("said").textContent = "Saved. Please send the file to whoever asked you.";
});
element("copy").addEventListener("click", async () => {
  element("answers").select();
  try { await navigator.clipboard.writeText(element("answers").value); } catch { document.execCommand("copy"); }
  element("said").textContent = "Copied.";
});
addEventListener("keydown", (event) => {
  const question = questions[at];
  if (question && !event.repeat && /^[1-9]$/.test(event.key) && event.target.tagName !== "INPUT") question.querySelectorAll(".option")[event.key - 1]?.click();
});

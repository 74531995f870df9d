"use strict";
const dialog = document.getElementById("zoom");
const links = [...document.querySelectorAll("a.zoom")];
let at = 0;
function show(k) {
  at = (k + links.length) % links.length;
  dialog.querySelector("p").textContent = links[at].dataset.title;
  dialog.querySelector("div").className = "";
  dialog.querySelector("img").src = links[at].querySelector("img").src;
  if (!dialog.open) dialog.showModal();
}
links.forEach((link, k) => link.addEventListener("click", (event) => { event.preventDefault(); show(k); }));
dialog.querySelector("img").addEventListener("click", () => dialog.querySelector("div").classList.toggle("close-up"));
dialog.addEventListener("click", (event) => { if (event.target.tagName === "DIV") dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(at + 1);
  if (event.key === "ArrowLeft") show(at - 1);
});
function open() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target && target.closest("details:not([open])");
  if (folded) { folded.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", open);
open();

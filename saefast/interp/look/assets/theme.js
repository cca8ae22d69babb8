// Before anything is drawn: the theme that was chosen here before, else that of the system.
"use strict";
try {
  const theme = localStorage.getItem("saefast-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {} // no storage for pages from the file system: nothing is kept

// Before the first paint, so that a chosen theme does not flash: the page's script comes later.
(() => {
  try {
    const theme = localStorage.getItem("shardline-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Without storage the system's theme holds.
  }
})();

import { useState } from "preact/hooks";

const KEY = "shardline-theme"; // public/theme.js reads it before the first paint
const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

function chosen(): Theme {
  const theme = document.documentElement.dataset.theme;
  return theme === "light" || theme === "dark" ? theme : "auto";
}

function choose(theme: Theme): void {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Without storage it holds until the page is closed.
  }
  window.dispatchEvent(new Event("themechange")); // canvases do not follow style sheets
}

/** Whose theme holds: the system's, or one of the two. */
export function ThemeSwitch() {
  const [theme, setTheme] = useState(chosen);
  return (
    <fieldset class="themes">
      <legend class="hidden">Theme</legend>
      {THEMES.map((name) => (
        <label key={name} class={theme === name ? "on" : ""}>
          <input
            type="radio"
            name="theme"
            checked={theme === name}
            onChange={() => {
              choose(name);
              setTheme(name);
            }}
          />
          {name}
        </label>
      ))}
    </fieldset>
  );
}

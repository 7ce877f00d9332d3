import { defineConfig } from "vite";

// The server's rule (client/dashboard/guard.py) is `default-src 'self'`: nothing may be inlined as
// `data:` or `<script>`, and everything is below /static/.
export default defineConfig({
  base: "/static/",
  build: {
    target: ["chrome123", "firefox121", "safari17.5"],
    assetsInlineLimit: 0,
    modulePreload: false,
    rollupOptions: { input: ["index.html", "login.html"] },
  },
});

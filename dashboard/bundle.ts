/** The page as the server hands it out: bundled once, and kept in memory, so that its guard sees every request. */

import page from "./index.html";

let bundle: Promise<Map<string, Blob>> | null = null;

/** The page, bundled when it is first asked for; null: it can't be, and `onError` was told why. */
export async function dashboardPage(onError: (problem: string) => void): Promise<Blob | null> {
  try {
    return (await (bundle ??= bundleDashboard())).get("/") ?? null;
  } catch (error) {
    bundle = null; // the next request tries again
    onError(`dashboard: ${error instanceof Error ? error.message : String(error)}`);
    return null;
  }
}

/** What the page loads from `path`; undefined: nothing, or the page was never asked for. */
export const dashboardFile = async (path: string) => (await bundle)?.get(path);

/** The dashboard and what it loads, by path, as Bun bundles them. Rejects where it can't. */
async function bundleDashboard(): Promise<Map<string, Blob>> {
  // Bun bundles for a route of a server, and no handler sees that asked for: so one that is there for a moment.
  const routes = { "/": page };
  const server = Bun.serve({ hostname: "127.0.0.1", port: 0, development: false, routes });
  const files = new Map<string, Blob>();
  try {
    const paths = ["/"];
    for (const path of paths) {
      const response = await fetch(new URL(path, server.url));
      if (!response.ok) throw new Error(`Bun can't bundle it, and has said why (${path})`);
      const file = await response.blob();
      // Nothing is shown before the script has set the theme. Bun drops the attribute, where it is in the page.
      const html = path === "/" ? await file.text() : "";
      const page = html.replace("<script", '<script blocking="render"');
      files.set(path, path === "/" ? new Blob([page]) : file);
      for (const [, linked = ""] of html.matchAll(/(?:src|href)="(\/[^"]+)"/g)) paths.push(linked);
    }
    return files;
  } finally {
    await server.stop(true);
  }
}

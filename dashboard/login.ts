/** How a browser gets in where the server has a token: by a form once, then by a cookie. Runs in the server. */

import { timingSafeEqual } from "node:crypto";
import page from "./login.html" with { type: "text" };

const COOKIE_SECONDS = 30 * 86_400;
const COOKIE = { maxAge: COOKIE_SECONDS, httpOnly: true, sameSite: "strict", path: "/" } as const;

const digest = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest();

/** What a browser gets without the token; `problem`: a text of ours. */
export const loginPage = (problem: string) => String(page).replace("<!-- problem -->", problem);

export function createLogin(token: string, now: () => number) {
  const wanted = digest(token);
  const isToken = (given: string | null | undefined) =>
    given != null && timingSafeEqual(digest(given), wanted); // hashed: of equal lengths
  // A browser can send no header with an EventSource, and sends a cookie to every port of its host: so
  // its name has the port, and its value is not the token, but says until when it stands for it.
  const cookieName = (headers: Headers) =>
    `pai_observability_${/:(\d+)$/.exec(headers.get("host") ?? "")?.[1] ?? "default"}`;
  const cookieValue = (name: string, expires: string) =>
    `${expires}.${new Bun.CryptoHasher("sha256", token).update(`${name} ${expires}`).digest("base64url")}`;

  return {
    isToken,
    /** A cookie that stands for the token in the query; null: there is none; empty: it is the wrong one. */
    cookieFor({ headers, url }: Request): string | null {
      const given = new URL(url).searchParams.get("token");
      if (given === null) return null;
      // As a form sends it; or as a person types it: then + and & are themselves, and perhaps %, too.
      const typed = url.replace(/^.*?[?&]token=/s, "");
      const decoded = new URLSearchParams(`token=${typed.replace(/[+&]/g, encodeURIComponent)}`);
      if (![given, decoded.get("token"), typed].some(isToken)) return "";
      const name = cookieName(headers);
      const value = cookieValue(name, String(now() + COOKIE_SECONDS * 1_000));
      const secure = headers.get("x-forwarded-proto") === "https";
      return new Bun.Cookie(name, value, { ...COOKIE, secure }).serialize();
    },
    hasCookie(headers: Headers): boolean {
      const name = cookieName(headers);
      // Any of them: a page at another port can set one of the same name for a path, which comes first.
      return (headers.get("cookie") ?? "").split("; ").some((cookie) => {
        const expires = cookie.slice(name.length + 1).split(".")[0] ?? "";
        const wantedCookie = digest(`${name}=${cookieValue(name, expires)}`);
        return timingSafeEqual(digest(cookie), wantedCookie) && Number(expires) > now();
      });
    },
  };
}

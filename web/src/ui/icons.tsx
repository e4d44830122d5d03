/** Few, small, drawn by hand; each stands beside a word and is hidden from screen readers. */
const PATHS = {
  explore: "M2 13h12M4 10l3-4 3 2.5L14 3",
  live: "M1.5 8h3l2-5 3 10 2-5h3",
  boards: "M2 3h5v5H2zM9 3h5v3H9zM9 8h5v5H9zM2 10h5v3H2z",
  operate: "M3 4h10M3 8h10M3 12h10M5 2.5v3M11 6.5v3M7 10.5v3",
  start: "M5 3l8 5-8 5z",
  docs: "M4 2h6l3 3v9H4zM10 2v3h3",
  out: "M6 3H3v10h3M7 8h7M11 5l3 3-3 3",
  plus: "M8 3v10M3 8h10",
};

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg viewBox="0 0 16 16" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Logo() {
  return (
    <svg viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="7" fill="#1f4fd8" />
      <g fill="#fff">
        <rect x="6" y="17" width="4.5" height="9" rx="1" />
        <rect x="13.75" y="11" width="4.5" height="15" rx="1" />
        <rect x="21.5" y="6" width="4.5" height="20" rx="1" />
      </g>
    </svg>
  );
}

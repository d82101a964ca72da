"""The page's style sheet."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --quiet: #5a636e; --line: #d8dde3; --raised: #f5f7f9; --link: #1f6aa8;
  --good: #1a7f4b; --good-paper: #e7f5ed; --bad: #b3261e; --bad-paper: #fcebea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #e4e8ec; --quiet: #9aa4af; --line: #333a42; --raised: #1c2026; --link: #7db8ea;
    --good: #6fcf9b; --good-paper: #16301f; --bad: #ff938a; --bad-paper: #3a1a18;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 0 0 .8rem; }
p { max-width: 46rem; margin: 0 0 1rem; }
a { color: var(--link); }
.about { color: var(--quiet); font-size: .92rem; overflow-wrap: anywhere; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .7rem 0; margin: 1.2rem 0 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .92rem; }
section { padding-top: 2.4rem; }
.banner { border-left: 5px solid; padding: .8rem 1.1rem; font-size: 1.12rem; font-weight: 600; max-width: none; }
.banner.good { border-color: var(--good); background: var(--good-paper); }
.banner.bad { border-color: var(--bad); background: var(--bad-paper); }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; margin: .2rem 0 1.6rem; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 30rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: .35rem; }
th, td { text-align: left; padding: .34rem .9rem .34rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { font-weight: 600; color: var(--quiet); vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
td.number { white-space: nowrap; }
.state { font-weight: 600; white-space: nowrap; }
.state.good { color: var(--good); }
.state.bad { color: var(--bad); }
.state.none { color: var(--quiet); font-weight: 400; }
figure { margin: .4rem 0 1.6rem; }
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; color: var(--ink); }
figcaption { color: var(--quiet); font-size: .9rem; padding-top: .3rem; }
.frames { list-style: none; display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; margin: 0 0 1rem; }
.frames li { display: flex; flex-direction: column; gap: .3rem; font-size: .88rem; color: var(--quiet); max-width: 15rem; }
.frames img { width: 7.5rem; border-radius: 4px; }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""

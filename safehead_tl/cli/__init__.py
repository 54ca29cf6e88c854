"""The `safehead` command: the library's functions, with the same words as options.

One file a command, with its table; `options` says each option once, in groups, of which
`arguments` makes what the library takes; `output` prints and writes. The command knows all, and
nobody knows it.
"""

from safehead_tl.cli.main import app

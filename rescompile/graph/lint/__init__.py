"""The fusion contract, checked before an engine is built: ``lint`` and its rules.

Each rule looks at the deployable graph alone and does not know how it was made, so graphs from other tools can be
linted too. A rule yields sentences that name the block and the fix. docs/fusion-contract.md says why each rule exists.
"""

from rescompile.graph.lint.check import RULES, fusable_adds, lint
from rescompile.graph.lint.subject import Violation

__all__ = ["RULES", "Violation", "fusable_adds", "lint"]

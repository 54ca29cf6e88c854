"""The live widget: what it computes, what it is asked, and its front in the browser."""

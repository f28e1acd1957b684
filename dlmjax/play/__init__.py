"""`dlmjax play`: a page on this machine in which text is sampled and looked at step by step, and completions over HTTP.

`fields` checks what a request holds, `runs` makes canvases and samplers of it, `worker` is the one thread that computes, `jobs` what it
computes, `traces` what is kept of finished samples, `completions` the usual shape of completions, `guard` who may ask, `server` the
addresses.
"""

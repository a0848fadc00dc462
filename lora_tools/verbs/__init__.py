"""The verbs: one file each, a plan from headers and a pure map over jobs."""

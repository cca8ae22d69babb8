"""Studies: a question, what is trained for it, what is measured, and a report with the verdict whatever it is."""

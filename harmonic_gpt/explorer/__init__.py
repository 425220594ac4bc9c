"""The explorer: two models side by side in the browser, as a static folder or served on this machine.

Here: what the page shows of models (`reading`, `centers`, `passages`, `vocabulary`, `verdict`), the files that hold it
(`format`), and the page itself (`page/`, plain HTML, CSS and scripts).
Not here: how anything is measured (`evaluation`).
"""

"""Questions about pictures and videos as the benchmark reads them: rows of any layout become samples, one at a time."""

"""Tables from any program: delimited text and workbooks."""

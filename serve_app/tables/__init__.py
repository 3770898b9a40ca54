"""Tables as people have them: delimited text and workbooks, whatever program wrote them."""

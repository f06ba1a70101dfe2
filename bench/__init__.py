"""The measurements behind the reports: speed against peers, and the miniature's figures. Not part of the product."""

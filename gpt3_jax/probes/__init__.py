"""What the paper measures of a model beside its accuracy: bias (section 6.2) and news articles (section 3.9.4)."""

  built = {
    childCompleted = childCompleted,
    childFailed = childFailed,
    claimDedup = claimDedup,
    delayedScore = delayedScore,
    forgetChild = forgetChild,
    keepJobs = keepJobs,
    releaseDedup = releaseDedup,
    releaseIfDone = releaseIfDone,
  }
  return built
end

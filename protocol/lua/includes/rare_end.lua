  built = {
    childCompleted = childCompleted,
    childFailed = childFailed,
    claimDedup = claimDedup,
    forgetChild = forgetChild,
    keepJobs = keepJobs,
    releaseDedup = releaseDedup,
    releaseIfDone = releaseIfDone,
  }
  return built
end

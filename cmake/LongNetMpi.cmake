# MPI::MPI_CXX, by the C interface alone: Open MPI 5 and MPICH have no library of C++ bindings, and nothing
# here uses one. The flags come from the C compiler's wrapper, so that libmpi_cxx or libmpichcxx is not linked
# where it exists. A package's build that uses LongNet reads this file too, and needs no C compiler.
# Which MPI, where there are several: -DMPI_EXECUTABLE_SUFFIX=.mpich (Debian's names), -DMPI_HOME=FOLDER, or
# -DMPI_CXX_COMPILER=WRAPPER.
set(MPI_CXX_SKIP_MPICXX TRUE)  # defines OMPI_SKIP_MPICXX and MPICH_SKIP_MPICXX
find_program(MPI_CXX_COMPILER NAMES mpicc${MPI_EXECUTABLE_SUFFIX}
             HINTS ${MPI_HOME} $ENV{MPI_HOME} PATH_SUFFIXES bin DOC "MPI compiler wrapper whose flags are used")
